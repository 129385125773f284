# One training a model type and seed: its checkpoint and its record.


rule train:
    input:
        data=lambda w: data_for(is_trained_now((w.model, int(w.seed)))),
        changed=lambda w: changed(TRAIN_RECORD.format(**w)),
    output:
        checkpoint=CHECKPOINT,
        record=TRAIN_RECORD,
    log:
        f"{LOGS}/train/{{model}}-{{seed}}.log",
    benchmark:
        f"{BENCHMARKS}/train/{{model}}-{{seed}}.tsv"
    conda:
        "../envs/relusym.yaml"
    threads: SETTINGS.config["threads"]
    resources:
        mem_mb=lambda wildcards, attempt: 3000 * attempt,
        runtime=lambda wildcards, attempt: 240 * attempt,
        gpu=GPU,
    params:
        settings=lambda wildcards: SETTINGS.train(wildcards.model),
        state=f"{RESULTS}/states/{{model}}-{{seed}}",
        device=SETTINGS.config["device"],
    script:
        "../workflow_scripts/train.py"
