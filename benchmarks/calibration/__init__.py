"""How well calibrated are verdicts and intervals? Many small audits, held against exact replay.

`draw.py` draws an audit from a seed, `small_pipeline.py` trains it, `lies.py` tampers with its record,
`audits.py` audits it thrice, `figures.py` reads the bars' figures off the rows.
"""
