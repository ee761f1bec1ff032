"""The methods that come with the harness; each is one file, loaded by name through the registry."""
