"""How often are verdicts right? Drawn pipelines, audited by the product, held against exact retraining.

`families.py` draws a pipeline from a seed (`draw.py`, `domains.py`, `networks.py`); `folders.py` writes, trains,
and records it (`pipeline.py` is the audited code), `lies.py` tampers with its record, `audits.py` audits
it in every setting; `retrain.py` and `truth.py` say who is guilty, without the product; `figures.py`
reads the bars' figures off the rows.
"""
