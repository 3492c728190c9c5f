"""Support for running steps: metrics, processes, memory, error messages for failures of the machine."""
