"""`harness demo`: compares the method with data parallelism on this machine."""
