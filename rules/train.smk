# The checkpoint and the record of each model and seed: a net that is trained, or read from published weights.

if MAIN:
    for reason in sorted({reason for reason in SETTINGS.absent.values() if "imagenet.root" in reason}):
        print(f"notice: {reason}; until then the rows of Tables 3 and 5 are left out", file=sys.stderr)


rule weights:  # needs the internet; fetched again for each net that is made from them, since the files may have changed
    output:
        temp(f"{FOLDER}/weights/{{model}}-{{fingerprint}}.safetensors"),
    log:
        f"{LOGS}/weights/{{model}}-{{fingerprint}}.log",
    localrule: True
    conda:
        ENVIRONMENT
    params:
        settings=lambda w: SETTINGS.train(w.model) | {"weights": SETTINGS.models[w.model].weights},
        cache="data/weights",
    script:
        "../workflow_scripts/weights.py"


rule train:
    input:
        lambda w: waits_for(job_of(TRAIN, w)),
    output:
        checkpoint=update(CHECKPOINT),
        record=update(TRAIN),
    log:
        f"{LOGS}/train/{NET}.log",
    group:  # for profiles/packed; a training on several GPUs is submitted by itself
        lambda w: "train" if processes(w.training_id) == 1 and "train" in groups() else None
    conda:
        ENVIRONMENT
    threads: lambda w: cores(w.training_id)
    resources:
        nets=1,
        mem_mb=lambda w, attempt: (8000 * processes(w.training_id) if on_imagenet(w.training_id) else 4000)
        * attempt,
        # a training that runs out of time resumes from its saved state
        runtime=lambda w, attempt: 1440 if on_imagenet(w.training_id) else 120 * attempt,
        gpu=lambda w: GPU * processes(w.training_id),
    params:
        job=train_job,
        weights=lambda w: read_by(job_of(TRAIN, w)).get("weights"),
        restarts=lambda w: SETTINGS.running(w.training_id).get("restarts", 0),
        device=SETTINGS.run.device,
        jobs_per_gpu=JOBS_PER_GPU,
    script:
        "../workflow_scripts/train.py"
