"""Training libraries, heard: each module records what one of them trains; none is imported by auditspec itself."""
