"""The jobs of the workflow: from images to nets, from nets to records."""
