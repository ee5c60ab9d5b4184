"""What brings a service to life: settings, logs, metrics, HTTP, loops, orderly shutdown."""
