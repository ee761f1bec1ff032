"""What several methods are built from; nothing here is a method, so discovery passes it by."""
