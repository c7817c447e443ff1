"""Who is answerable: the rule of the verdict, a pure function of levels (docs/verdicts.md)."""
