"""Many hosts on one machine, with links of any rate, latency and loss."""
