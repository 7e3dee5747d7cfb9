"""What both wings know: the identity of a trial, the store on disk, random generators."""
