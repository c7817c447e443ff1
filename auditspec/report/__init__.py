"""The report: one view model, charts, HTML, and PDF."""
