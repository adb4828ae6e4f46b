"""An experiment harness that measures which way of parallelising a classifier pays off."""
