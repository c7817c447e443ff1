"""The spec: types, YAML source with places, and published schema."""
