"""What a service must find again on its own machine: a file that it alone writes."""
