"""What training would cost on a cluster, predicted: every way of it, and which to take."""
