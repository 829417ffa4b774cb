"""What every public object must survive, and the models it is tried in."""
