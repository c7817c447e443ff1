"""Confidence checks: why each came out as it did, what its lines saw, and why it was not run."""

from __future__ import annotations

from collections.abc import Mapping

COMMON = {
    "failed": "{error}",
    "not-finite": "not finite",
    "exact": "exact",
    "and-more": "and {lines} more",
    "within-tolerance": "within the tolerance",
    "artifact-unreadable": "an artifact cannot be read",
    "artifact-unusable": "an artifact cannot be used",
    "nothing-to-look-at": "the audit has nothing of what it looks at",
}
EVIDENCE_INTEGRITY = {
    "artifact-bad-or-loose": "an artifact is missing, mismatched, or not pinned",
    "artifact-is-bad": "{artifact} ({path}) is {state:case missing=missing|mismatched=mismatched}: {notes}",
    "artifacts-not-pinned": "no digest pins {artifacts} (`auditspec digest --lock` does)",
    "artifacts-pinned": "all {artifacts} artifacts have the pinned digest",
    "artifact-state": "{state:case verified=verified|declared=declared|missing=missing|mismatched=mismatched}",
    "evidence-remedy": "{remedy}",
}
OPTIMIZER_MATCH = {
    "not-the-declared-training": "the record is not the declared training",
    "stages-differ": "the stages differ: declared {declared}; recorded {recorded}",
    "stages-match": "every declared field of {stages:count stage|stages} matches the record",
    "fields-match": "every declared field matches",
    "field-differs": "{field} {declared} declared, {recorded} recorded",
    "parameter-differs": "{field} {declared} declared for {parameter}, {recorded} recorded",
    "group-is-empty": "no trained parameter is of the declared group {group}",
    "schedule-differs": "schedule {schedule} declared; lr {rate:number 6} at step {step}, not "
    "{expected:number 6}",
    "of-group": "group {group}: {note}",
    "steps-read-other-data": "steps read data that the record's stage does not name: {datasets}",
    "groups-differ": "{groups:count parameter group|parameter groups} in the record's header, others at its steps",
}
COMMITMENT = {
    "nothing-committed": "no stage names what was committed to before it was trained, so that nothing shows that the "
    "record was not made afterwards",
    "not-as-committed": "a stage is not the one that was committed to",
    "as-committed": "{stages:count stage follows|stages follow} what was committed to beforehand",
    "stage-not-committed": "nothing was committed to beforehand",
    "no-steps-to-compare": "the record holds no steps to compare with what was committed to",
    "differs-from-commitment": "differs from what was committed to in {fields}",
    "commitment-unsigned": "as committed to, but the spec names no trainer's key (signed_by) for both commitment and record",
    "commitment-undated": "as committed to, but no timestamps or log (dated_by) of both commitment and record say which of "
    "them is older",
    "entered-after-record": "what was committed to is entry {entry} of the log, after the record",
    "entered-before-record": "as committed to, entry {entry} of the log, before the record",
    "dated-too-late": "committed to at {moment}, {between:number 3} s before the record was signed, and its steps and those "
    "after them took {seconds:number 3} s",
    "dated-before-record": "as committed to at {moment}, {between:number 3} s before the record was signed",
}
MEMORIZATION = {
    "no-rows-asked-for": "`checks.memorization.rows` is 0",
    "no-rows-held-back": "no row of its data was held back: every one was drawn, or none is known by its number",
    "rows-fitted": "over {segments:count segment|segments}, the loss of {trained} rows that were trained on fell by {advantage:number 2} "
    "more than that of {held} held-back rows (p = {p:number 2}); a difference of {detectable:number 2} would be seen four times of five",
}
DATA_PROVENANCE = {
    "undeclared-data": "undeclared data: {lines}",
    "record-row-numbers": "rows that the loop changed or made match nothing; record row numbers (run.loss(ids), "
    "run.batch(ids)), so that load_batch changes them under the recorded random state",
    "rows-not-recorded": "the record does not say which rows the stages were trained on",
    "rows-declared": "all {rows} rows of the batches are of the declared data",
    "rows-by-content": "{rows} of them by content",
    "no-step-recorded": "no step is recorded: which rows it was trained on is not known",
    "rows-by-number": "{rows} rows by number, of {datasets}",
    "rows-of": "{rows} rows, of {datasets}",
    "tensors-found": "{rows} recorded as tensors, each found there by its content",
    "rows-of-undeclared": "{rows} {rows:plural is|are} of '{dataset}', which the stage does not declare",
    "rows-of-nowhere": "{rows} match no row of any data set at hand",
    "data-not-compared": "'{dataset}' was not compared ({error})",
    "rows-undeclared": "{undeclared} of {rows} rows are not of {datasets}: {parts}",
}
RECORD_FIDELITY = {
    "record-not-reproduced": "the record does not reproduce itself",
    "no-steps-to-re-run": "the record holds no steps, so nothing can be re-run",
    "checkpoints-met": "made again, the run met {bitwise} of its {checkpoints} saved checkpoints bit for bit, the farthest "
    "within {deviation:number 2}",
    "checkpoint-missed": "made again, the run missed the checkpoint that {stage} had saved after step {step}",
    "windows-re-run": "{rerun} of {windows} windows re-run, largest deviation {deviation:number 2}",
    "none-lands-bitwise": "none lands bitwise",
    "altered-window-missed": "one altered window would be missed with probability {probability:number 2}",
    "accept-other-rounding": "if these steps use kernels that round otherwise here, set "
    "checks.record-fidelity.threshold",
    "movement-missed": "misses {share:percent} of what the window moved",
    "others-alike-are-bitwise": "not bitwise, though windows of the same arithmetic are ({windows})",
    "others-unlike-are-bitwise": "not bitwise, though windows of other arithmetic are ({windows})",
    "other-loss": "step {step} records a loss of {recorded:number 6}, its re-run {rerun:number 6}",
    "deviates": "deviates by {deviation:number 2}",
    "the-data-trained-on": "the one that was trained on",
    "not-the-data-trained-on": "not the one that was trained on",
    "not-from-end-to-end": "the stage is not recorded from end to end: {reasons}",
    "steps-and-states": "{steps} of {planned} steps, states at {states}",
    "other-tensors": "other tensors than the record's last state: {tensors:list 5}",
    "the-last-state": "the record's last state; accepted {tolerance:declared}",
    "not-the-last-state": "not the record's last state; accepted {tolerance:declared}",
    "weights-form": "read from {form:case safetensors=safetensors|sharded=shards|torch=a file by torch.save|"
    "distributed=a folder of torch.distributed.checkpoint|adapter=an adapter folder}",
    "weights-entry": "the state dict stands at {entry}",
    "weights-prefix": "names differ by the prefix '{prefix}'",
    "tied-tensors-differ": "{first} and {second} are one tensor of the model, and differ",
    "other-type": "{tensor} is {found}, and {declared} is declared (model.conversion.dtype)",
    "cast-undeclared": "{tensor} is {found}, {recorded} in the record; if the weights were cast, declare "
    "model.conversion.dtype: {found}",
    "outside-rounding": "{values} of {total} values of {tensor} are outside of what the declared conversion gives",
    "weights-cast": "cast to {dtype}, as declared",
    "weights-quantized": "{tensors:count tensor|tensors} of int8, each value within {steps:declared} steps",
    "read-before-conversion": "behaviours are read on the record's last state; the deployed weights are converted from "
    "it, and lie {deviation:number 2} of its size away",
    "scale-too-wide": "the scales of {tensor} are wider than its weights ask for, so that steps say little",
    "nothing-quantized": "no int8 tensor with a scale named {scale}; correct model.conversion.quantized",
    "adapters-merged": "adapters of {layers:count layer|layers} merged, as declared; they stand in the weights with "
    "factor {factor:number 6}",
    "adapters-beside": "adapters beside their base weights, as declared",
    "not-merged": "the adapters stand in the weights with factor {factor:number 3}, not 1",
    "adapter-undeclared": "an adapter without its base weights; declare model.conversion, adapters: beside and base",
    "no-adapter-folder": "no adapter folder, where adapters beside base weights are declared",
    "adapters-unknown": "not the tensors of a model with one low-rank adapter a layer: {tensors:list 3}",
    "adapter-config-unread": "adapter_config.json is none of a plain LoRA of the recorded rank",
    "scaling-unknown": "layer {module} does not say the scaling of its adapter; declare model.conversion.scaling",
    "other-scaling": "the adapter of {module} is scaled by {found:number 6}, by {recorded:number 6} in training",
    "begins-where-before-ended": "the stage begins where the one before ended",
    "begins-elsewhere": "begins elsewhere than the stage before ended",
    "optimizer-state-given": "The optimizer of {stage} began with state that no recorded stage left; it is the same in every "
    "counterfactual.",
    "optimizer-state-carried": "its optimizer state is called 'given', and is what the stage before left",
    "other-optimizer-state": "its first optimizer state is not what '{boundary}' means",
    "made-otherwise": "{function} does not make the recorded {tensors:list 3}",
}
INITIAL_WEIGHTS = {
    "beginning-undeclared": "nobody declares where the first weights come from (model.initial)",
    "like-no-draw": "{tensor} is like no draw of the factory",
    "like-draws": "they are like draws of the factory",
    "given-weights-not-pinned": "nothing pins the weights that were given (model.initial.weights)",
    "the-given-weights": "the first weights are those that were given",
    "not-the-given-weights": "{tensor} is not as in the pinned weights",
    "seed-draws-another": "seed {seed:declared} draws another {tensor} than the record begins with",
    "not-drawn": "{tensor} is like no draw of the factory: it was not drawn at random",
    "drawn-by-seed": "the factory draws the first weights at random: the seed draws them again",
    "drawn-at-random": "the factory draws the first weights at random: they are like its other draws",
}
RUNS = {
    "runs-diverge": "without {stages} training diverges, and the effect is undefined",
    "estimates-unread": "without {stages} there is an estimate only, of which nothing can be read, and no exact run could be paid",
    "scores-go-by-batch": "its scores move by {apart:number 2} where examples are scored alone: they go by padding or by the other "
    "examples of a batch, of which the spec freezes {size} (estimator.batch_size)",
    "scores-alone-as-together": "examples score alone as they do together",
    "no-steady-score": "no score is read off a model without random numbers",
    "runs-converge": "every run without a stage trains",
    "no-predict": "the spec states no model.predict, by which earlier models are read",
    "batches-hold-outputs": "its batches hold {output} of the model with which '{source}' ended",
    "outputs-make-effects-inexact": "so do the runs without what trained that model, whose effects are therefore "
    "not exact; have a function of recorder.extend compute them",
    "no-outputs-in-batches": "no tensor of the batches looked at is an output of an earlier stage's model",
    "code-in-own-process": "the audited code ran in the audit's own process (isolation none)",
    "nothing-was-asked": "no function of the code was asked anything that could be asked again",
    "asked-once-more": "{questions:count question|questions}, asked again",
    "second-raised": "the second process did not answer: {error}",
    "answers-of-another-form": "an answer of another form",
    "answers-differ": "{functions} answered the audit otherwise than a second process that was asked the same: it depends "
    "on more than model, batch, and random generators, and what it told the audit cannot be relied on",
    "answers-alike": "every question of the sample was answered as before",
    "no-stage-off-path": "no stage is trained in any run without another",
    "objectives-change": "what the code gives for {stages} is another function off the recorded path than on it",
    "objectives-continuous": "{objectives:count objective is|objectives are} continuous from recorded to "
    "counterfactual weights, and so are the outputs for {behaviors:count behaviour|behaviours}",
    "outputs-jump": "jump {jump:number 2} of the outputs",
    "loss-jumps": "jump {jump:number 2} of the loss",
    "slope-off": "slope off by {recorded:number 2} at the recorded, {counterfactual:number 2} at the "
    "counterfactual weights",
}
ESTIMATES = {
    "no-own-error": "no effect states an error of its own: exact, or alike by both estimates",
    "largest-own-error": "the largest own error is {share:number 2} of the largest effect",
    "own-error-unknown": "the own error is unknown for {behaviors:list 3}: {reasons}",
    "no-estimate-of-own-error": "the estimator has no estimate of it, and no replay gave one",
    "error-unknown-for": "unknown for {stage}",
    "effect-and-error": "{stage}: {effect:signed} ± {error:number 2}; largest effect {largest:number 3}",
    "estimate-agrees": "the estimate agrees with exact replay of {stages}",
    "leading-are-replays": "every leading stage's effect is an exact replay itself",
    "estimate-is-off": "{stage} on {behavior}: estimate {estimate:signed}, exact {exact:signed}",
    "estimate-and-exact": "estimate {estimate:signed 4}, exact {exact:signed 4}",
    "is-a-replay": "is an exact replay itself",
    "replays-went-to-unreliable": "every replay went to a stage whose estimate is unreliable ({stages}), so that "
    "no other estimate was held against one: raise checks.spot-check.stages",
    "no-steps-to-replay": "the record holds no steps, so nothing can be replayed",
    "no-replay-in-budget": "the budget does not pay for an exact replay (estimator.budget)",
    "no-spot-check": "the spec asks for no spot check (checks.spot-check.stages: 0)",
    "effects-undecided": "{effects:count effect|effects} undecided under {level:percent} simultaneous intervals "
    "(max-T bootstrap, {resamples:count resample|resamples})",
    "few-examples": "fewer than {fewest} examples for {behaviors}",
    "no-behavior-read": "no behaviour is read off a model",
    "no-chance-in-scores": "no scores are made elsewhere or again",
    "scores-none": "'{behavior}' is scored elsewhere, and the spec names no table of scores",
    "scores-not-of-deployed": "'{behavior}' is scored elsewhere, and '{artifact}' has no scores of the deployed model",
    "scored-once": "no model was scored twice, so that the noise of scoring is not known",
    "scores-lack-run": "there are no scores of the run {arm:arm}",
    "noise-in-tolerances": "two scorings of one model lie {share:number} tolerances apart or less in {level:percent} of "
    "the cases",
    "examples-and-undecided": "{examples:count example|examples}, {stages:count stage|stages}, {undecided} "
    "undecided",
    "read-plug-in": "read plug-in",
    "read-plug-in-far": "read plug-in, far from linear",
    "no-slope-to-compare": "first-order, and without a slope to compare with",
    "no-linear-reading-to-compare": "no first-order estimate has a linear reading to compare with",
    "nothing-rests-on-first-order": "no effect rests on a first-order estimate",
    "readings-differ": "the readings of {stage} on {behavior} differ by {share:number 2} of the effect",
    "first-order-not-to-be-trusted": "first-order is not to be trusted there",
    "no-float64-examples": "the spec asks for no float64 examples (checks.precision.examples: 0)",
    "estimate-in-float64": "the estimate is made in float64",
    "in-float64": "float64",
    "with-weights-moved": "moving every weight by one unit of rounding",
    "rounding-changes": "{other} gives something else for {numbers:list 3}",
    "rounding-harmless": "{other} changes nothing by more than {share:number 1} of the behaviour's largest "
    "effect, on at most {examples:count example|examples} a behaviour",
    "no-float64": "the code does not run in float64: {error}",
    "two-precisions": "{narrow:number 6}, with {other} {wide:number 6}",
    "effects-add-up": "the effects lie at most {share:number 2} of the total change off it",
    "effects-do-not-add-up": "the effects on {behaviors:list 3} do not add up: the stages act together, and no "
    "effect is a share of the whole",
    "total-not-known": "the total change of {behaviors:list 3} is not known: the model was changed in between",
    "sum-and-total": "sum of effects {sum:signed}, total change {total:signed}",
    "sum-without-total": "sum of effects {sum:signed}, total change not known",
    "no-draws": "the spec asks for no draws (checks.placebo.draws: 0)",
    "deployed-read-twice": "reading the deployed model twice",
    "reading-not-repeatable": "the empty stage has an effect on {behaviors:list 3}: reading is not repeatable",
    "too-few-draws": "{draws:count draw|draws} cannot show p ≤ {level:declared} for "
    "{effects:count effect|effects}; {needed} can",
    "placebos-match": "random displacements of the same size match {effects:list 3}",
    "effects-stand-out": "every effect beyond the tolerance stands out from {draws} random displacements of its "
    "stage's size ({effects:count effect|effects}, p ≤ {level:declared} for all together)",
    "no-effect-beyond-tolerance": "no effect is beyond the tolerance",
}
DATA_USE = {
    "data-used-as-it-should-be": "no evaluation example was trained on, no stage repeats a few examples, and "
    "nothing was read that no artifact pins",
    "examples-trained-on": "of its {examples:count evaluation example|evaluation examples} {parts}; its intervals "
    "do not speak for new examples",
    "examples-of-stage": "{examples} {examples:plural is a training example|are training examples} of '{stage}'",
    "examples-relabelled": "{examples} {examples:plural is a training example|are training examples} of '{stage}' "
    "under another label",
    "examples-not-told-apart": "whether its evaluation examples were trained on cannot be told from their "
    "content ({stages})",
    "examples-new": "none of its {examples:count evaluation example|evaluation examples} was trained on",
    "few-different-rows": "{rows} rows are {distinct} different ones; uniform sampling of the declared {declared} "
    "would give {expected:count}",
    "examples-in-every-step": "{examples:count example is|examples are} in all {steps} steps; uniform sampling "
    "would put each in {usual:count}",
    "examples-in-many-steps": "{examples:count example is|examples are} in {least} or more of {steps} steps; "
    "uniform sampling would put each in {usual:count}",
    "declared-and-unread": "no row of {datasets} was read, which it declares",
    "rows-varied": "{rows:count row|rows}, {distinct} different, each in at most {most} of {steps} steps",
    "file-outside": "{readers:joined  and } {path} ({digest}), which no artifact pins",
    "file-not-hashed": "{readers:joined  and } {path} (not hashed), which no artifact pins",
    "file-read": "{who} read",
    "file-named": "{who} names",
    "of-the-factory": "the factory",
    "of-extend": "extend",
    "of-load-batch": "load_batch",
    "of-predict": "predict",
    "of-the-import": "the code's import",
    "of-another-function": "another function of the code",
    "of-the-objective": "the objective of {stage}",
    "of-the-metric": "the metric of {behavior}",
    "factory-in-training-read": "the factory, in training, read",
    "extend-in-training-read": "extend, in training, read",
    "training-read": "training read",
    "model-building-names": "a function that built the model in training names",
    "weights-from-outside": "they may come from {paths}, which no artifact pins: the start is unexplained",
    "loads-differ-each-time": "load_batch gives other tensors each time it is called for the same rows; nothing "
    "that is read on them can be repeated",
    "loads-draw-numbers": "load_batch draws random numbers for evaluation rows; behaviours are read on one draw",
    "loads-go-by-name": "load_batch treats the same rows otherwise: as '{dataset}' {how}",
    "it-raises": "it raises {error}",
    "it-gives-other-tensors": "it gives other tensors",
    "loads-go-by-path": "load_batch reads the file itself, or decides by its path: that it treats evaluation rows "
    "as training rows was not probed",
    "loads-alike": "load_batch gives the same tensors for {rows:count row|rows}",
    "loads-go-by-company": "load_batch gives a row other tensors when rows are asked for "
    "{order:case reverse=in reverse|fewer=fewer}",
    "rows-loaded-alike": "each row is loaded alike whatever is loaded with it",
    "label-not-read": "they are the same with the labels exchanged",
    "label-read": "{changed} of {predictions} change when labels are exchanged: predict reads the label",
    "inputs-rest-on-code": "the inputs are no scale and shift of the file's columns, so that what load_batch makes "
    "of evaluation rows rests on the code",
    "rows-made-otherwise": "{odd} of {rows} rows are not what load_batch makes of training rows",
    "inputs-are-columns": "the inputs of {rows:count row|rows} are the file's columns, scaled as in training",
}

TOPICS: Mapping[str, Mapping[str, str]] = {
    "Checks": COMMON,
    "Check evidence-integrity": EVIDENCE_INTEGRITY,
    "Check optimizer-match": OPTIMIZER_MATCH,
    "Check commitment": COMMITMENT,
    "Check memorization": MEMORIZATION,
    "Check data-provenance": DATA_PROVENANCE,
    "Check record-fidelity": RECORD_FIDELITY,
    "Check initial-weights": INITIAL_WEIGHTS,
    "Checks asked-again, batching, convergence, model-outputs, off-path": RUNS,
    "Checks of estimates": ESTIMATES,
    "Check data-use": DATA_USE,
}
