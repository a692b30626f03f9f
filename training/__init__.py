"""How the experts of the demo pool were made: `python -m training`. Nothing of the installed package imports this."""
