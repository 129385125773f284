# Prints how much of the scale is done.


rule status:
    log:
        f"{LOGS}/status.log",
    localrule: True
    conda:
        ENVIRONMENT
    params:
        title=f"Scale {SETTINGS.scale}",
        jobs=lambda w: {
            kind: {
                RESULTS.name(key): RESULTS.is_there(key)
                for key, job in RESULTS.jobs.items()
                if job.kind == kind
                and key in RESULTS.chosen
                and not job.is_beyond
                and all(SETTINGS.model_of(type_).is_in_paper for type_, _ in job.nets)
            }
            for kind in SUBMITTED
        },
        folder=RESULTS.prefix + FOLDER,
    script:
        "../workflow_scripts/status.py"
