# What has to be right before the config is read.
import sys

try:
    from relusym.errors import UserError
    from relusym.config.reading import check_command_line, check_file
except ModuleNotFoundError as error:
    if error.name != "relusym":
        raise
    sys.exit("error: relusym isn't installed in this Python: pip install --editable . in this folder")

if workflow.is_main_process and not workflow.modifier.skip_configfile:
    try:
        check_command_line(workflow.config_settings.config, sys.argv)
        for path in ["config.yaml", *workflow.config_settings.configfiles]:
            check_file(path)
    except UserError as error:  # not raised: Snakemake would add lines of its own
        sys.exit(f"config error: {error}")
