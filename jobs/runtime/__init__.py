"""What every step does around its work: metrics, processes, memory, sentences for failures of the machine."""
