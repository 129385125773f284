# relu-symmetries: train seven types of VGG11, merge each net with its flipped self and with others, and tabulate the results.
#
#   images → data/<dataset> → train → flip_merge, pair_merge → tables and figures
#
# Targets: all (default), each table and figure (table1 … table5, theory, costs, provenance, figure1 … figure10, zero_filters),
# compare, beyond (and each of its tables and figures, such as matchings), latex, status, bench. Settings: config.yaml and
# scales/<scale>.yaml.
from snakemake.utils import min_version

min_version("9.14")


include: "rules/inside.smk"
include: "rules/config_files.smk"


configfile: "config.yaml"


report: "report/workflow.rst"


CONTAINER = f"{workflow.current_basedir}/envs/relusym.sif"

# Used only with --sdm apptainer, which allows no space in an image's path; built from the recipe envs/relusym.def.
if " " not in CONTAINER:

    container: lambda wildcards: CONTAINER


include: "rules/common.smk"
include: "rules/resources.smk"
include: "rules/data.smk"
include: "rules/cluster.smk"
include: "rules/selection.smk"
include: "rules/train.smk"
include: "rules/merge.smk"
include: "rules/theory.smk"
include: "rules/tables.smk"
include: "rules/status.smk"
include: "rules/ending.smk"
include: "rules/bench.smk"


rule all:
    default_target: True
    input:
        [note(name) for name in SEVERAL["all"]],


rule beyond:
    input:
        [note(name) for name in SEVERAL["beyond"]],


rule compare:
    input:
        [note(name) for name in SEVERAL["compare"]],


include: "rules/targets.smk"
