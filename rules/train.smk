# One training a model type and seed: its checkpoint and its record.


rule train:
    input:
        data=lambda w: data_for(is_trained_now((w.model, int(w.seed)))),
        changed=lambda w: outdated(TRAIN_RECORD.format(**w)),
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
        mem_mb=growing(4000),
        runtime=growing(120),
        gpu=GPU,
    params:
        data=DATA,
        settings=lambda wildcards: SETTINGS.train(wildcards.model),
        state=f"{RESULTS}/states/{{model}}-{{seed}}",
        device=SETTINGS.config["device"],
        jobs_per_gpu=JOBS_PER_GPU,
    script:
        "../workflow_scripts/train.py"
