"""Rows as the model sees them: `kyon-pl preview`."""
