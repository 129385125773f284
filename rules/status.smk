# What a person asks of a run: targets with no output but on the screen.

# Every kind of job: its records, and the settings that each has to be made with (None: any).
OF_KIND = {
    kind: {record: settings for record, settings in records.items() if record in CHOSEN}
    for kind, records in JOBS.items()
}
MEASURED_SCALE = "laptop"  # whose benchmarks are in the repository
TFLOPS = 4.0  # 10¹² operations a second that a GPU sustains: half of a T4's peak in float32


localrules:
    status,
    estimate,


rule status:
    log:
        f"{LOGS}/status.log",
    conda:
        "../envs/relusym.yaml"
    params:
        title=f"Scale {SETTINGS.scale}",
        wanted=lambda w: OF_KIND,
        records=RECORDS,
        logs=LOGS,
        benchmarks=BENCHMARKS,
    script:
        "../workflow_scripts/status.py"


rule estimate:
    log:
        f"{LOGS}/estimate.log",
    conda:
        "../envs/relusym.yaml"
    params:
        config=SETTINGS.config,
        scale=SETTINGS.scale,
        measured=MEASURED_SCALE,
        benchmarks=f"results/{MEASURED_SCALE}/benchmarks",
        tflops=TFLOPS,
    script:
        "../workflow_scripts/estimate.py"
