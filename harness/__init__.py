"""An experiment harness that says, by measurement, which way of parallelising a classifier pays."""
