"""Solutions into a training set: filters with reasons, code preference, down-sampling, masked solutions, coverage.

A training set is a folder that appears whole:

    train.jsonl       a row a line, in its final order: the columns of the published OpenMathInstruct-1, `question,
                      generated_solution, expected_answer, predicted_answer, error_message, is_correct, dataset,
                      generation_type`, with their values as released, and `problem_id` as the last
    train.parquet     the same rows and columns
    sft.jsonl         what a trainer reads: `{"problem_id": …, "input": …, "output": …}`, the same rows in the same order;
                      `input` is the text that the prompt of `--sft_prompt` makes of the question, `output` is
                      `generated_solution` and nothing more (the trainer adds its end token)
    chat.jsonl, …     conversation formats that were asked for (formats.py)
    dropped.jsonl     with --keep_drops: every row that was left out, with its reason and where it stood
    selection.json    options, inputs, and the counts of every reason
    README.md         the dataset card
"""
