"""Verdicts and what follows from them: statements, reasons, remedies, findings, limitations, the policy gate."""

from __future__ import annotations

from collections.abc import Mapping

STATEMENTS = {
    "evidence-carries-no-estimate": "Nobody can be named or cleared: the evidence does not carry an estimate.",
    "not-measured": "Not measured: nobody can be named or cleared without scores.",
    "noise-decides": "Nobody can be named or cleared: scoring the same model again moves the level by more than its "
    "tolerance.",
    "nothing-estimated": "Nobody can be named or cleared: nothing was estimated.",
    "too-few-examples": "Nobody can be named or cleared: there are too few evaluation examples.",
    "run-missing": "Nobody can be named: a run that this hangs on could not be made.",
    "within-the-limit": "The deployed model is within the limit: {value:level unit}, not "
    "{direction:case increase=above|decrease=below} {limit:stated unit}.",
    "worse-than-knowing-nothing": "Nobody can be named or cleared: the deployed model is worse than one that "
    "knows nothing, and so was every state of its training.",
    "nobody-cleared-on-estimate": "Nobody can be cleared: the estimate is not to be relied on.",
    "no-worse-than-own-best": "No worse than the best state of its own training: {value:level unit}.",
    "nobody-named-on-estimate": "Nobody can be named: the estimate is not to be relied on.",
    "no-party-found": "Nobody can be named: the level is beyond what is acceptable, and no party is found.",
    "clearance-hangs-on-examples": "Nobody can be cleared: with other evaluation examples the answer would "
    "change.",
    "name-uncertain": "Nobody can be named with the certainty asked for.",
    "one-or-more-answerable": "One or more of {parties:party} are answerable for a level of {value:level unit}.",
    "who-is-answerable": "{parties!c:party} {parties:plural is|are} answerable",
    "who-inherited": "The fault was inherited with the initial weights",
    "who-introduced": "The fault was introduced between stages, by {party:party}",
    "run-of-arm": "{arm:arm}",
    "run-without-those": "without {parties:plural it|them}",
    "answerable-persists": "{who}: the level was beyond what is acceptable when its turn ended, and at the end "
    "of every later stage; it is {value:level unit}.",
    "answerable-removed": "{who}: {run} the level would be {left:level unit}, not {value:level unit}.",
    "answerable-for-a-part": "{who} for a part: {run} the level would be {left:level unit}, not "
    "{value:level unit}.",
}
"""What a verdict says in one sentence, and the parts of it."""
REASONS = {
    "gate-missing": "{gate}: the check is missing",
    "gate-reason": "{gate}: {reasons}",
    "gate-lines": "{gate}: {lines}",
    "check-line": "{subject}: {notes}",
    "check-line-bare": "{subject}",
    "examples-below": "{examples:count example|examples}, fewer than {fewest}",
    "run-not-made": "the run {arm:arm} was not made",
    "run-is-estimated": "the run {arm:arm} is estimated, not replayed",
    "level-beside-uninformed": "the level is {value:level unit}; a prediction that knows nothing gives "
    "{uninformed:level unit}",
    "own-best-cannot-judge-beginning": "without a limit the run's own best state is the measure, by which its "
    "beginning cannot be judged",
    "evidence-carries-less": "the evidence carries a confidence of at most {cap:declared}, below "
    "{level:declared}",
    "part-of-others-open": "whether {parties:party} had a part in it, the evaluation examples leave open",
    "part-is-nobodys": "a part of the excess is there without those named too, and is nobody's here",
    "raised-further-untested": "{parties:party} raised it further; whether as a cause is not told apart",
    "confidence-capped": "confidence capped at {cap:declared}, the most that evidence of this grade carries",
    "no-party-raised-it": "no party's turn raised it and is missed in it: a lack of skill, or a limit out of "
    "reach",
    "ends-unexplained": "so it ends in {share:percent} of the resamples",
    "resamples-naming-nobody": "in {share:percent} of the resamples nobody is named, fewer than {level:percent}",
    "resamples-naming-somebody": "in {share:percent} of the resamples somebody is named",
    "name-hangs-on-examples": "which of them is named changes with the evaluation examples",
    "resamples-without-run": "for {resamples:count resample|resamples} a run that the rule asked for was not "
    "made",
    "beginning-not-cleared": "No limit is stated: the initial weights and {stage:party} are neither named nor "
    "cleared.",
    "start-unexplained": "The start is unexplained: the initial weights are not those that are declared, or are "
    "undeclared and no draw of the factory (check initial-weights).",
    "skill-unread": "What a model can do could not be read: whether a run without a stage is a working model "
    "was assumed, not measured.",
    "raised-and-gone": "raised it; gone from the deployed model",
    "raised-and-not-missed": "raised it, and is not missed in it",
    "raised-and-untested": "raised it further, not tested",
}
"""Why a verdict or a role is what it is, and what it does not clear."""
SKILL = {
    "skill-of-behavior": "'{behavior}'",
    "accuracy-outside": "accuracy on the rows outside the slice of {dataset}",
    "accuracy-on-all": "accuracy on all rows of {dataset}",
}
"""What a model's skill is read on."""
REMEDIES = {
    "settle-evidence": "the evidence named above, complete and unaltered",
    "settle-estimate": "an estimate, under a larger budget (estimator.budget)",
    "settle-enough-examples": "{fewest} evaluation examples or more",
    "settle-scores": "scores of the models that auditspec counterfactuals writes (docs/cli.md)",
    "settle-score-again": "more scorings of each model, more examples, or a larger tolerance",
    "settle-replay": "exact replay (estimator.method: replay), or a larger budget",
    "settle-another-estimator": "another estimator than first-order (estimator.method: auto)",
    "settle-float64": "an estimate in float64 (estimator.dtype: float64)",
    "settle-honest-objective": "an objective that depends on the model and the batch alone",
    "settle-limit": "a limit (behaviors[].concern.limit)",
    "settle-limit-that-clean-models-keep": "a limit that clean models keep (auditspec limit)",
    "settle-examples": "more evaluation examples",
    "settle-budget": "a larger budget (estimator.budget)",
    "settle-budget-and-steps": "a larger budget (estimator.budget), and a record that holds its steps",
    "settle-whole-record": "a training record with every step, re-run as a whole",
    "settle-reference-data": "reference data for the party that cannot be left out (`reference`)",
    "settle-reference": "reference data or weights for the parties that cannot be left out (`reference`)",
}
"""What would settle it."""
ALTERNATIVES = {
    "data-or-procedure": "The stage's data, its procedure, or both may be the cause; the audit does not separate "
    "them.",
    "earlier-stage-receptive": "An earlier stage may have made the model receptive: effects are those of leaving "
    "out one stage with all others present.",
    "effect-is-estimate": "The effect is an estimate; exact replay may give another value.",
    "fault-is-masked": "The fault would be larger without {parties:list}, which worked against it.",
}
"""Other explanations of a finding."""
LIMITATIONS = {
    "evidence-not-pinned": "Nothing pins the bytes of {artifacts}; they are taken as declared.",
    "data-limitation": "{subject!c}: {notes}.",
    "check-not-run": "The check {check} was not run: {reasons}.",
    "check-inconclusive": "The check {check} is inconclusive: {reasons}.",
    "check-covers": "The check {check} looked at {coverage:percent}: {reasons}.",
    "check-failed": "The check {check} failed: {reasons}.",
    "descriptive-check-failed": "The check {check}, which decides nothing, failed: {reasons}.",
    "spec-laxer": "The spec asks for less than the default of {options}.",
    "effects-are-estimates": "The effects of {parties:list} are estimates; their error is taken from the estimator "
    "itself and from the stages that were replayed, and another stage may be worse.",
    "code-changed": "The audited code is not, byte for byte, the code that trained ({files}); that it re-runs "
    "the record is what links the two.",
    "groups-left-out": "Groups with too few examples were left out of {behavior} ({examples:count example|examples}): {groups}. "
    "Nothing is said of them.",
    "inconclusive-is-no-acquittal": "An inconclusive verdict is no acquittal: it names what would settle it.",
    "effects-are-of-this-run": "An effect is that of leaving out one whole stage of this one training run, later "
    "stages unchanged; it does not tell the stage's data from its procedure, and another run of the same recipe "
    "may differ.",
    "effects-need-not-add-up": "Effects of different stages need not add up: stages can act together, and two "
    "stages that each suffice for a fault hide each other.",
    "code-ran-in-the-audit": "The training code ran in the auditing process, where it could have changed anything; an "
    "auditor who does not trust its author reads it first.",
    "code-not-kept-from": "The training code ran in a process of its own, and the machine did not keep that from "
    "{measures:list}.",
    "code-speaks-for-its-model": "What the model computes is what the training code says, in a process that can only answer: a lie "
    "about it that agrees with the record, and with every question that was asked again, passes.",
    "intervals-cover-examples": "The intervals cover the choice of evaluation examples, and speak for others "
    "drawn like them; they do not cover another random seed of training.",
    "price-of-a-lie": "A false record that passes costs at least {trainings:number 3} of a training, {gradients} of the {whole} "
    "minibatch gradients that the record holds, as far as cheaper ways are known: it is another run that was really made; {conditions}.",
    "lie-at-even-odds": "that is the price at even odds of being caught, since {rerun} of {windows} windows were re-run",
    "lie-within-rounding": "{rounded} of {rerun} re-run windows land within rounding only, where a state may be moved by up to 5 % of what "
    "the window moved it, or by rounding, without a gradient",
    "lie-begins-as-declared": "it begins with the declared weights",
    "lie-before-record": "training before its first state costs nothing, since nothing confirms the first weights",
    "lie-planned-beforehand": "it was fabricated before it was committed to, or follows what was committed to",
    "lie-at-any-time": "it could be made at any time, since nothing that is older commits to it",
    "states-re-run": "States between the recorded ones were re-run, not read.",
    "boundaries-only": "Only the states where stages begin and end are recorded: learning rates are as declared, "
    "minibatches were drawn anew, and nothing of the training could be re-run: a false record costs no training.",
    "run-made-again": "Nobody recorded the run. It was made again by its own code and held against the checkpoints that it had "
    "saved; between those, the steps are the repeated run's.",
    "record-unsigned": "The training record carries no signature of the trainer.",
}
"""What the audit did not establish."""
GATE = {
    "gate-check-failed": "{check} failed",
    "gate-finding": "{finding}: {severity:case low=low|medium=medium|high=high|critical=critical} severity, "
    "{behavior}",
    "gate-beyond-limit": "beyond its limit: {severity:case low=low|medium=medium|high=high|critical=critical} "
    "severity, {behavior}",
    "gate-inconclusive": "inconclusive: {behavior}",
    "policy-fails-on": "fails on {rules:joined  and on }",
    "policy-severity": "findings of {severity:case low=low|medium=medium|high=high|critical=critical} severity "
    "or above",
    "policy-no-inconclusive": "inconclusive verdicts",
    "policy-evidence-only": "fails on bad evidence only",
}
"""The policy gate."""

TOPICS: Mapping[str, Mapping[str, str]] = {
    "Verdicts": STATEMENTS,
    "Reasons of verdicts and roles": REASONS,
    "What skill is read on": SKILL,
    "What would settle it": REMEDIES,
    "Other explanations of a finding": ALTERNATIVES,
    "Limitations": LIMITATIONS,
    "The policy gate": GATE,
}
