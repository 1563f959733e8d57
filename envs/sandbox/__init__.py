"""Where model-written code runs. `base.py` says what a sandbox promises, `choosing.py` which one this machine has."""
