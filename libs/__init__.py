"""The shared floors of the house: contracts, bus, kit, log; hardware; inference."""
