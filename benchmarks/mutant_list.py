"""Faults to be seeded, each a line of the package told wrong, and the tests for it.

A text stands in the package exactly once, wherever it is: a fault outlives a file that
moves. `tests/test_mutants.py` holds the list to that.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        name: what is wrong then.
        text: a piece of the package's source that is there exactly once.
        instead: what stands in its place.
        tests: arguments of pytest that choose the tests of the part.
    """

    name: str
    text: str
    instead: str
    tests: tuple[str, ...]


def _of(*tests: str, **faults: tuple[str, str]) -> list[Mutant]:
    """Faults of one part, as name=(text, instead)."""
    return [Mutant(name, *texts, tests) for name, texts in faults.items()]


MUTANTS = [
    # online
    *_of(
        "tests/online/test_memory.py",
        a_reservoir_that_prefers_the_old=(
            "place = int(rng.integers(held.seen.total()))",
            "place = int(rng.integers(2 * held.seen.total()))",
        ),
        replay_that_is_not_balanced=(
            "return order[starts[chosen] + inside]",
            "return order[inside]",
        ),
    ),
    *_of(
        "tests/online/test_learner.py",
        kept_rows_weigh_as_new_ones=(
            "old = weight * (1.0 - new) / (self.rows - n)",
            "old = (1.0 - new) / (self.rows - n)",
        ),
        a_memory_that_never_forgets=(
            "if learner.on_drift.forget:",
            "if learner.on_drift.forget is None:",
        ),
    ),
    *_of(
        "tests/online/test_terms.py",
        anchors_without_information=(
            "fisher.assign(self.term.decay * to_numpy(fisher) + new)",
            "fisher.assign(self.term.decay * to_numpy(fisher) + 1.0)",
        ),
    ),
    # codecs
    *_of(
        "tests/codecs/test_gaps.py",
        gap_positions_shifted=(
            "    ends -= 1\n    return ends",
            "    return ends",
        ),
        gap_position_outside_accepted=(
            "if count and positions[-1] >= size:",
            "if count and positions[-1] > size:",
        ),
    ),
    *_of(
        "tests/codecs/test_huffman.py",
        huffman_code_may_be_incomplete=(
            "if np.left_shift(1, MAX_LENGTH - lengths).sum() != 1 << MAX_LENGTH:",
            "if np.left_shift(1, MAX_LENGTH - lengths).sum() > 1 << MAX_LENGTH:",
        ),
    ),
    *_of(
        "tests/codecs/test_bits.py",
        bits_padding_unchecked=(
            "if self.position % 8 and self.read(-self.position % 8):",
            "if self.position % 8 and not self.read(-self.position % 8) + 1:",
        ),
        gamma_one_bit_short=(
            "2 * np.frexp(values)[1].astype(np.int64) - 1",
            "2 * np.frexp(values)[1].astype(np.int64) - 2",
        ),
    ),
    *_of(
        "tests/codecs/test_container.py",
        checksum_unchecked=(
            "if checksum(body) != found:",
            "if len(checksum(body)) != len(found):",
        ),
    ),
    *_of(
        "tests/codecs/test_tensor.py",
        grid_over_the_first_axis=(
            "yield size.max(axis=tuple(range(array.ndim - 1)))",
            "yield size.max(axis=tuple(range(1, array.ndim)), keepdims=True)",
        ),
    ),
    # graph
    *_of(
        "tests/post_training/test_methods.py",
        folding_without_epsilon=(
            "factor = 1 / np.sqrt(variance + normalization.epsilon)",
            "factor = 1 / np.sqrt(variance)",
        ),
        folding_adds_the_mean=(
            "offset = -to_numpy(normalization.moving_mean) * factor",
            "offset = to_numpy(normalization.moving_mean) * factor",
        ),
    ),
    *_of(
        "tests/graph/test_folding.py",
        offsets_go_before_padding=(
            'return bool(layer.padding == "valid" or max(layer.kernel_size) == 1)',
            "return True",
        ),
        groups_see_the_first_channels=(
            "seen = group[None, :] * inputs + np.arange(inputs)[:, None]",
            "seen = 0 * group[None, :] + np.arange(inputs)[:, None]",
        ),
    ),
    # measure
    *_of(
        "tests/measure/test_costs.py",
        transposed_counts_outputs=(
            "return math.prod(given[0]) * math.prod(layer.kernel.shape[:-1])",
            "return math.prod(made) * math.prod(layer.kernel.shape[:-1])",
        ),
        attention_counts_one_product=(
            "width = layer.key_dim + (layer.value_dim or layer.key_dim)",
            "width = layer.key_dim",
        ),
    ),
    *_of(
        "tests/measure/test_memory.py",
        outputs_leave_early=(
            "last |= dict.fromkeys((t for t in outputs if t in first), len(steps) - 1)",
            "last |= {}",
        ),
    ),
    # report
    *_of(
        "tests/report/test_health.py",
        equal_rows_of_two_layers_are_twins=(
            "whose = str(id(variable)).encode()",
            'whose = b"1"',
        ),
    ),
    *_of(
        "tests/graph/test_channels.py",
        variance_from_the_sum=(
            "np.maximum(square / count - np.square(mean), 0.0)",
            "np.maximum(square / count, 0.0)",
        ),
    ),
    # select
    *_of(
        "tests/test_select.py",
        "tests/transforms/test_recipe.py",
        either_selector_needs_both=(
            "return any(part(target) for part in self.parts)",
            "return all(part(target) for part in self.parts)",
        ),
    ),
    # schedules
    *_of(
        "tests/schedules",
        triangle_twice_as_long=(
            "cycle = xp.floor(1.0 + step / (2.0 * self.half_cycle))",
            "cycle = xp.floor(1.0 + step / (4.0 * self.half_cycle))",
        ),
    ),
    *_of(
        "tests/transforms/test_prune_schedules.py",
        update_on_the_step_itself=(
            "due = begin + ((step - begin) // every + 1) * every",
            "due = begin + ((step - begin) // every) * every",
        ),
    ),
    # optimizers
    *_of(
        "tests/optimizers/test_rules.py",
        adam_second_moment_uncorrected=(
            "alpha = lr * corrected / (1 - ops.power(",
            "alpha = lr / (1 - ops.power(",
        ),
        belief_against_the_old_mean=(
            "surprise = ops.square(gradient - m)",
            'surprise = ops.square(gradient - slots["momentum"])',
        ),
        free_average_weighs_all_alike=(
            "after = before + square",
            "after = before + lr",
        ),
        mean_forgets_the_old=(
            "return beta * old + (1 - beta) * new",
            "return beta * new + (1 - beta) * old",
        ),
    ),
    *_of(
        "tests/optimizers/test_gradients.py",
        "tests/optimizers/test_options.py",
        clipping_each_by_the_square=(
            "length = ops.where(squared > 0, ops.sqrt(squared), squared)",
            "length = ops.where(squared > 0, squared, squared)",
        ),
        centralized_over_the_outputs=(
            "ops.mean(gradient, axis=axes, keepdims=True) if axes else gradient",
            "ops.mean(gradient, axis=-1, keepdims=True) if axes else gradient",
        ),
        unit_gradient_never_limited=(
            "return gradient * ops.minimum(limit / length, 1.0)",
            "return gradient * ops.maximum(limit / length, 1.0)",
        ),
    ),
    *_of(
        "tests/optimizers/test_options.py",
        "tests/optimizers/test_rules.py",
        slow_weights_by_the_whole_way=(
            "slow = slow + self.alpha * (",
            "slow = slow + (",
        ),
        lookahead_a_step_late=(
            "due = ops.logical_and(done > before, done % self.period == 0)",
            "due = ops.logical_and(done > before, done % self.period == 1)",
        ),
    ),
    *_of(
        "tests/optimizers/test_sam.py",
        sam_stays_moved=(
            "for variables, values in ((weights, before), (others, fixed)):",
            "for variables, values in ((others, fixed),):",
        ),
    ),
    # callbacks
    *_of(
        "tests/callbacks/test_loss_driven.py",
        a_lower_loss_lowers_the_rate=(
            "up = ops.logical_and(due, smooth <= state.reference)",
            "up = ops.logical_and(due, smooth >= state.reference)",
        ),
        overshoot_ignored=(
            "raised > best * rule.overshoot)",
            "raised > best)",
        ),
    ),
    *_of(
        "tests/callbacks/test_plateau.py",
        plateau_counts_any_change=(
            "if sign * value < sign * best - self.min_delta:",
            "if sign * value < sign * best:",
        ),
    ),
    # layers
    *_of(
        "tests/layers",
        depth_not_scaled=(
            "return inputs * kept / ops.cast(self.survival, inputs.dtype)",
            "return inputs * kept * ops.cast(self.survival, inputs.dtype)",
        ),
        moving_variance_by_n_less_one=(
            "variance = variance * ((count - 1.0) / count)",
            "variance = variance * (count / (count - 1.0))",
        ),
        shortcut_pads_before=(
            "widths[-1 if last else 1] = (0, extra)",
            "widths[-1 if last else 1] = (extra, 0)",
        ),
    ),
    # transforms
    *_of(
        "tests/transforms/test_prune_values.py",
        lamp_over_the_smaller=(
            "rest = np.cumsum(squares[order][::-1])[::-1]",
            "rest = np.cumsum(squares[order])",
        ),
        one_zero_too_many=(
            "mask[ties[: zeros - int((flat < threshold).sum())]] = 0.0",
            "mask[ties[: zeros + 1 - int((flat < threshold).sum())]] = 0.0",
        ),
        erk_without_the_sizes=(
            "density = spread(sums / sizes, sizes, (1 - sparsity) * sizes.sum())",
            "density = spread(1 / sizes, sizes, (1 - sparsity) * sizes.sum())",
        ),
        global_ignores_unit_sizes=(
            "weight.append(np.full(most, units.size / flat.size))",
            "weight.append(np.full(most, 1.0))",
        ),
    ),
    *_of(
        "tests/transforms/test_quantize_weights.py",
        "tests/transforms/test_quantize.py",
        grid_one_level_wider=(
            "- 2 ** (self.bits - 1), 2 ** (self.bits - 1) - 1",
            "- 2 ** (self.bits - 1), 2 ** (self.bits - 1)",
        ),
        power_of_two_rounds_down=(
            "xp.log2(xp.maximum(size, TINY) * (4 / 3))",
            "xp.log2(xp.maximum(size, TINY))",
        ),
        step_gradient_turned=(
            "ops.where(inside, codes - steps, codes)",
            "ops.where(inside, steps - codes, codes)",
        ),
    ),
    *_of(
        "tests/transforms/test_quantize_activations.py",
        zero_point_of_the_top=(
            "xp.floor(-low / scale + 0.5), 0, highest)",
            "xp.floor(high / scale + 0.5), 0, highest)",
        ),
    ),
    *_of(
        "tests/transforms/test_statistics.py",
        statistics_summed=(
            '"squared_gradient": total[1] / len(batches),',
            '"squared_gradient": total[1],',
        ),
    ),
    *_of(
        "tests/transforms/test_cluster.py",
        cluster_means_of_one_more=(
            "totals / np.maximum(counts, 1), centroids)",
            "totals / np.maximum(counts + 1, 1), centroids)",
        ),
        lower_centroid_always=(
            "middles = (rising[1:] + rising[:-1]) / 2",
            "middles = rising[1:]",
        ),
    ),
    *_of(
        "tests/transforms/test_low_rank.py",
        svd_factors_unbalanced=(
            '"last": root[:, None] * v[: ranks[0]],',
            '"last": s[: ranks[0], None] * v[: ranks[0]],',
        ),
        energy_of_singular_values=(
            "np.cumsum(np.square(",
            "np.cumsum(np.abs(",
        ),
    ),
    # int8
    *_of(
        "tests/int8/test_placement.py",
        quantizer_between_sum_and_relu=(
            "return (fuses or is_weighted(call.layer)) and is_relu(following.layer)",
            "return fuses and not is_relu(following.layer)",
        ),
        kept_range_quantized_again=(
            "if keeps and set(call.inputs) <= quantized:",
            "if keeps and not set(call.inputs) <= quantized:",
        ),
    ),
    *_of(
        "tests/graph/test_trace.py",
        "tests/int8/test_placement.py",
        a_tensor_that_two_take=(
            "return None if elsewhere or len(calls) != 1 else calls[0]",
            "return None if elsewhere or not calls else calls[0]",
        ),
    ),
    # surgery
    *_of(
        "tests/transforms/test_low_rank.py",
        factors_that_are_larger=(
            "sum(f.size for f in factors.values()) < np.prod(",
            "sum(f.size for f in factors.values()) > np.prod(",
        ),
    ),
    *_of(
        "tests/surgery/test_hashed_layers.py",
        hashed_without_signs=(
            "table = ops.concatenate([buckets, -buckets]) if self.signs else buckets",
            "table = ops.concatenate([buckets, buckets]) if self.signs else buckets",
        ),
    ),
    # models and data
    *_of(
        "tests/models",
        one_block_too_many=(
            "for block in range((depth - 2) // 6):",
            "for block in range((depth - 2) // 6 + 1):",
        ),
    ),
    *_of(
        "tests/data/test_load.py",
        labels_of_other_examples=(
            "y_val=raw.y_train[cut:],",
            "y_val=raw.y_train[:count],",
        ),
        idx_may_announce_anything=(
            "if count == 0 or count > limit:",
            "if count == 0:",
        ),
    ),
    # post_training
    *_of(
        "tests/post_training/test_methods.py",
        bias_moved_the_wrong_way=(
            "to_numpy(layer.bias) - (got[0] - moments[0])",
            "to_numpy(layer.bias) + (got[0] - moments[0])",
        ),
        equalized_without_the_root=(
            "scale = np.sqrt(np.where(used, ones, 1.0) / np.where(used, twos, 1.0))",
            "scale = np.where(used, ones, 1.0) / np.where(used, twos, 1.0)",
        ),
        bias_not_equalized=(
            "one.layer.bias.assign(to_numpy(one.layer.bias) / scale)",
            "one.layer.bias.assign(to_numpy(one.layer.bias) * scale)",
        ),
    ),
    # storage
    *_of(
        "tests/storage/test_round_trip.py",
        "tests/storage/test_specification.py",
        bytes_of_the_container_twice=(
            "container_bytes=len(data) - other,",
            "container_bytes=len(data),",
        ),
        entropy_of_the_zeros_too=(
            "counts[-low] = 0",
            "counts[-low] += 0",
        ),
    ),
    *_of(
        "tests/storage/test_allowed.py",
        "tests/storage/test_hostile_files.py",
        python_code_allowed=(
            "if usable and name not in REFUSED:",
            "if usable:",
        ),
    ),
    *_of(
        "tests/storage/test_hostile_files.py",
        file_larger_than_allowed=(
            "if len(data) > max_bytes:",
            "if len(data) > 2 * max_bytes:",
        ),
    ),
    # export
    *_of(
        "tests/export/test_litert.py",
        "tests/export/test_verify.py",
        ties_count_as_clear=(
            "clear = margin > 1\n",
            "clear = margin >= 0\n",
        ),
        zero_point_unchecked=(
            "and int(tensor.zero_points[0]) == r.zero_point",
            "and int(tensor.zero_points[0]) < 2**31",
        ),
    ),
    # interop
    *_of(
        "tests/interop/test_tfmot_parity.py",
        tfmot_grid_a_point_early=(
            'np.searchsorted(share, wanted, side="right")',
            'np.searchsorted(share, wanted, side="left")',
        ),
    ),
    # distribute
    *_of(
        "tests/distribute/test_plans.py",
        rate_not_raised=(
            '"sqrt": math.sqrt(replicas)',
            '"sqrt": float(replicas)',
        ),
        workers_that_do_not_join=(
            "replicas=workers * len(devices),",
            "replicas=workers,",
        ),
    ),
    *_of(
        "tests/distribute/test_exchange.py",
        error_feedback_lost=(
            'wanted = tf.reshape(gradient + state["error"], sides)',
            "wanted = tf.reshape(gradient, sides)",
        ),
    ),
    # trials
    *_of(
        "tests/trials",
        one_retry_too_many=(
            "if task is None or tries >= retries:",
            "if task is None or tries > retries:",
        ),
        infinite_value_accepted=(
            "return float(value) if math.isfinite(value) else None",
            "return float(value) if not math.isnan(value) else None",
        ),
    ),
    # tpu
    *_of(
        "tests/tpu",
        all_reduce_sends_once=(
            '"all-reduce": 2 * share',
            '"all-reduce": share',
        ),
        padding_down=(
            "return -(-size // unit) * unit",
            "return size // unit * unit",
        ),
    ),
    # cli
    *_of(
        "tests/cli/test_cli.py",
        bad_input_ends_well=(
            "FAULT, BAD_INPUT, INTERRUPTED = 1, 2, 130",
            "FAULT, BAD_INPUT, INTERRUPTED = 1, 0, 130",
        ),
    ),
    # model_parallel
    *_of(
        "tests/model_parallel/test_layout.py",
        split_along_the_first_axis=(
            '"model" if i == places[-1] else None',
            '"model" if i == places[0] else None',
        ),
        slots_counted_for_all=(
            "total += size * (copies if id(variable) in trainable else 1)",
            "total += size * copies",
        ),
    ),
    # measure
    *_of(
        "tests/measure",
        ninetieth_is_the_median=(
            "ninetieth=float(np.quantile(times, 0.9)),",
            "ninetieth=float(np.quantile(times, 0.5)),",
        ),
    ),
    # auto, report
    *_of(
        "tests/auto",
        loss_not_weighted_by_examples=(
            "total += len(y) * float(",
            "total += float(",
        ),
        weight_left_changed=(
            "target.variable.assign(before)",
            "before.sum()",
        ),
    ),
    *_of(
        "tests/report/test_quality.py",
        calibration_bins_shifted=(
            "np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)",
            "np.ceil(confidence * BINS).astype(int), 0, BINS - 1)",
        ),
        churn_counts_only_new_errors=(
            "churn=float((one != two).mean()),",
            "churn=float(((one == y) & (two != y)).mean()),",
        ),
    ),
    # surgery
    *_of(
        "tests/surgery/test_bounds.py",
        "tests/surgery/test_remove_dead.py",
        "tests/surgery/test_removal.py",
        constants_in_front_of_padding_leave=(
            "even = self.ignore_padding or not read.padded",
            "even = True",
        ),
        constants_added_with_one_tap=(
            'kernel = verdict.read.kernel.sum(axis=0, dtype="float64")',
            'kernel = verdict.read.kernel[0].astype("float64")',
        ),
        a_bias_for_every_call=(
            "even and read.place.calls == 1",
            "even",
        ),
        bounds_without_the_negative_weights=(
            'np.einsum("gio,gi->go", up, low) + np.einsum("gio,gi->go", down, high)',
            'np.einsum("gio,gi->go", up, low)',
        ),
        unread_where_one_output_leaves=(
            "return ~(verdict.touches & left).any(axis=2).ravel()",
            "return ~(verdict.touches & left).all(axis=2).ravel()",
        ),
        valleys_have_no_bottom=(
            "np.minimum(bottom, least), least)",
            "least, least)",
        ),
    ),
    *_of(
        "tests/surgery/test_prune_channels.py",
        any_number_of_channels=(
            "stays = self.step * max(round((n - min(wanted, n)) / self.step), 1)",
            "stays = n - min(wanted, n)",
        ),
        the_most_important_leave=(
            'ranked = np.array(groups)[np.argsort(scores[groups], kind="stable")]',
            'ranked = np.array(groups)[np.argsort(-scores[groups], kind="stable")]',
        ),
        median_of_the_squares=(
            "return np.sqrt(np.maximum(products, 0)).sum(axis=1)",
            "return np.maximum(products, 0).sum(axis=1)",
        ),
    ),
    *_of(
        "tests/measure",
        strides_not_counted=(
            "return math.prod(made) * math.prod(layer.kernel.shape[:-1])",
            "return math.prod(given[0]) * math.prod(layer.kernel.shape[:-1])",
        ),
        freed_a_step_early=(
            "change[max(last[tensor], begin) + 1 if steps else 0]",
            "change[max(last[tensor], begin) if steps else 0]",
        ),
    ),
    # runtime
    *_of(
        "tests/runtime",
        repeats_keep_their_first_value=(
            "tf.math.unsorted_segment_sum(gradient",
            "tf.math.unsorted_segment_max(gradient",
        ),
        pure_for_every_thread=(
            "_HERE = threading.local()",
            '_HERE = type("Here", (), {})()',
        ),
        branches_see_each_other=(
            "assign(variable, old)",
            "assign(variable, value(variable))",
        ),
        the_branch_not_taken=(
            "ops.where(condition, value(variable), other)",
            "ops.where(condition, other, value(variable))",
        ),
        rules_compute_in_half=(
            'return "float64" if dtype == "float64" else "float32"',
            "return dtype",
        ),
    ),
    # adapt
    *_of(
        "tests/adapt/test_unfreezing.py",
        "tests/adapt/test_tuning.py",
        late_weights_counted_from_the_start=(
            "return lr, step - self.idle if self.idle else step",
            "return lr, step",
        ),
        rates_fall_towards_the_head=(
            "factor = max(decay ** (len(placed) - 1 - number), slowest)",
            "factor = max(decay**number, slowest)",
        ),
        lora_without_its_factor=(
            "factor = 1.0 if self.alpha is None else self.alpha / self.rank",
            "factor = 1.0",
        ),
        held_near_zero_not_near_the_start=(
            'way = way - state["start"]',
            "way = 1 * way",
        ),
        weights_that_others_replace_are_trained=(
            "if self.target.variable.trainable:",
            "if not self.target.variable.trainable:",
        ),
    ),
    *_of(
        "tests/surgery/test_sharing.py",
        "tests/storage/test_repeats.py",
        shared_numbers_count_for_each_weight=(
            "ours[id(variable)] = math.prod(variable.shape)",
            "ours[len(ours)] = math.prod(variable.shape)",
        ),
        a_transpose_is_stored_as_the_matrix=(
            "found[i] = known[turned], 1",
            "found[i] = known[turned], 0",
        ),
    ),
    # distill
    *_of(
        "tests/distill/test_terms.py",
        "tests/distill/test_distill.py",
        distilled_logits_lose_the_temperature=(
            "return heat**2 * per_example(found, self._weights(seen))",
            "return per_example(found, self._weights(seen))",
        ),
        several_teachers_at_another_temperature=(
            "return student, heat * ops.logsumexp(",
            "return student, ops.logsumexp(",
        ),
        a_mean_teacher_forgets_the_other_way=(
            "average + (1.0 - self.decay) * (value - average)",
            "average + self.decay * (value - average)",
        ),
    ),
    # obfuscate
    *_of(
        "tests/data/test_obfuscate.py",
        lies_that_may_be_the_truth=(
            "labels + rng.integers(1, classes, labels.shape)",
            "labels + rng.integers(0, classes, labels.shape)",
        ),
        any_key_is_the_right_one=(
            "if not hmac.compare_digest(order.digest, hidden.digest):",
            "if order.block != hidden.block:",
        ),
        mixtures_without_signs=(
            "return (signs * mixed).reshape(x.shape)",
            "return (abs(signs) * mixed).reshape(x.shape)",
        ),
    ),
    # privacy
    *_of(
        "tests/privacy/test_private.py",
        "tests/privacy/test_accounting.py",
        private_steps_without_noise=(
            "live * (total + sigma * model.clip * z) / size",
            "live * (total + 0.0 * sigma * model.clip * z) / size",
        ),
        gradients_of_examples_keep_their_length=(
            "mask * ops.minimum(1.0, clip / safe)",
            "mask * ops.ones_like(safe)",
        ),
        norms_of_gradients_leave_out_biases=(
            "squares.append(ops.sum(summed * summed, axis=1))",
            "squares.append(0.0 * ops.sum(summed, axis=1))",
        ),
        a_begun_pass_costs_nothing=(
            "return math.ceil(self.steps / batches)",
            "return math.floor(self.steps / batches)",
        ),
        the_budget_ends_a_step_late=(
            "return ops.cast(steps < limit",
            "return ops.cast(steps <= limit",
        ),
    ),
]
