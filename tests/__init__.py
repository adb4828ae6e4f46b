"""Tests mirror harness/. ranks.py runs a function on real ranks, horovodrun.py horovodrun."""
