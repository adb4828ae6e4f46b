"""Predicts what every way of training would cost on a cluster, and recommends one."""
