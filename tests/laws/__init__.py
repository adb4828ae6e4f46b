"""The exactness laws of the method, in float64, on real ranks under horovodrun."""
