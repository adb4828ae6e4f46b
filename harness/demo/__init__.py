"""`harness demo`: the method against data parallelism, on this machine."""
