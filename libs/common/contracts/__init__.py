"""Every subject of the mesh and the message that travels on it. Knows nothing else of the house."""
