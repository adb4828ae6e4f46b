"""The sections of a config, one module each, with the checks inside a section."""
