# Merging every net with its flipped self (the GCNN barrier, Tables 2, 3 and 5) and with other nets (Table 4).


rule flip_merge:
    input:
        lambda w: waits_for(job_of(FLIP, w)),
    output:
        record=update(FLIP),
        filters=update(FILTERS),  # small arrays, from which the figures of filters are drawn
    log:
        f"{LOGS}/flip_merge/{MODEL}.log",
    conda:
        ENVIRONMENT
    threads: SETTINGS.run.threads
    resources:
        nets=1,
        mem_mb=lambda w, attempt: (16000 if on_imagenet(w[0]) else 6000) * attempt,  # the wildcard of the first type
        runtime=lambda w, attempt: (240 if on_imagenet(w[0]) else 30) * attempt,
        gpu=GPU,
    params:
        job=merge_job(FLIP),
        device=SETTINGS.run.device,
        jobs_per_gpu=JOBS_PER_GPU,
    script:
        "../workflow_scripts/merge.py"


use rule flip_merge as pair_merge with:
    input:
        lambda w: waits_for(job_of(PAIR, w)),
    output:
        record=update(PAIR),
    log:
        f"{LOGS}/pair_merge/{TWO_NETS}.log",
    params:
        job=merge_job(PAIR),


use rule flip_merge as measure with:  # beyond the paper: each measurement is a module of relusym/beyond
    input:
        lambda w: waits_for(job_of(MEASURED, w)),
    output:
        record=update(MEASURED),
    log:
        f"{LOGS}/{{measurement}}/{NETS}.log",
    resources:
        nets=1,
        mem_mb=lambda w, attempt: 6000 * attempt,
        runtime=lambda w, attempt: 120 * attempt,
        gpu=GPU,
    params:
        job=merge_job(MEASURED),
