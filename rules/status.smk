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
                for key in counted_by_status()
                if RESULTS.jobs[key].kind == kind
            }
            for kind in dict.fromkeys([*SUBMITTED, *(RESULTS.jobs[key].kind for key in counted_by_status())])
        },
        folder=RESULTS.prefix + FOLDER,
    script:
        "../workflow_scripts/status.py"
