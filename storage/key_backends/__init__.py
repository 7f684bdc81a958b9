"""Key-encryption backends, one module a place where the key-encryption key lives."""
