"""As one would write them for verl's custom_reward_function; nothing here knows of this library."""


def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    answer = solution_str.split("\n")[-1].strip()
    return {"score": float(answer == ground_truth), "turns": extra_info["num_turns"], "pred": answer}


def compute_scores(data_sources, solution_strs, ground_truths, extra_infos):
    rows = zip(data_sources, solution_strs, ground_truths, extra_infos, strict=True)
    return [compute_score(*row) for row in rows]
