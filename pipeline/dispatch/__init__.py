"""Ready prompts → the services: which goes when, what is sent again, what it comes to."""
