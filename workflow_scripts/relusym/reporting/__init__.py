"""The command `relusym` and what stands behind it: a report on one net, nets and images from files, the page."""


def main() -> int:
    """Run the command (command.py); its exit code, that of Ctrl-C while its imports run, too."""
    try:
        from relusym.reporting import command

        return command.main()
    except KeyboardInterrupt:
        return 130
