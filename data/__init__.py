"""Small real data and the shipped models; read through `tinydiff.datasets`."""
