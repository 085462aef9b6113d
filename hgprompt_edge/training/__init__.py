"""Train prompts: source prompts, condition prompts, the neutral prompt, tuning."""
