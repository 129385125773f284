# Prints how much of the scale is done.


@cache
def counted():
    """The trainings and merges for the paper's tables; of a scale without any, all trainings, merges and measurements."""
    of_nets = {key: job for key, job in RESULTS.jobs.items() if key in RESULTS.chosen and job.nets}
    return [
        key
        for key, job in of_nets.items()
        if not job.is_beyond and all(SETTINGS.model_of(type_).is_in_paper for type_, _ in job.nets)
    ] or [*of_nets]


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
                for key in counted()
                if RESULTS.jobs[key].kind == kind
            }
            for kind in dict.fromkeys([*SUBMITTED, *(RESULTS.jobs[key].kind for key in counted())])
        },
        folder=RESULTS.prefix + FOLDER,
    script:
        "../workflow_scripts/status.py"
