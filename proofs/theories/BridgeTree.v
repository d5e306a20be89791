(** * BridgeTree: the noise of any span is the sum of few nodes of a tree of exact splits, and spans add.

    About [Settlement.owed_units], [_share] and [_left] of reference/settlement.py. A node [low, low + 2^level) holds a
    whole number [total]: the noise of its steps together. It is split at its middle; the left half gets
    [left_half low middle high total] and the right half the rest. How the split is drawn and rounded ([split] below)
    plays no part: only that the two halves sum to the whole, in integers, and that a half without variance gets
    nothing. The horizon is the number of steps rounded up to a power of two; behind the last step the clock stands
    still.

    Steps are natural numbers and noise is in integers of mathematics, one coordinate at a time: that a path stays below
    2^53, so that int64 and float64 hold it, is checked where it is computed (docs/modes.md) and not proved here. *)

Require Import List Arith ZArith Lia Bool.
Import ListNotations.
Local Open Scope nat_scope.

(** ** Sums over a range of steps *)

(** [sum_range f lo hi] = f lo + f (lo + 1) + ... + f (hi - 1); zero when hi <= lo. *)
Definition sum_range (f : nat -> Z) (lo hi : nat) : Z := fold_right (fun t s => (f t + s)%Z) 0%Z (seq lo (hi - lo)).

Lemma sum_range_empty f lo hi : hi <= lo -> sum_range f lo hi = 0%Z.
Proof. intro H. unfold sum_range. now replace (hi - lo) with 0 by lia. Qed.

Lemma sum_range_one f t : sum_range f t (S t) = f t.
Proof. unfold sum_range. replace (S t - t) with 1 by lia. cbn. lia. Qed.

Lemma sum_range_split f lo mid hi : lo <= mid <= hi -> sum_range f lo hi = (sum_range f lo mid + sum_range f mid hi)%Z.
Proof.
  intro H. unfold sum_range. replace (hi - lo) with ((mid - lo) + (hi - mid)) by lia. rewrite seq_app, fold_right_app.
  replace (lo + (mid - lo)) with mid by lia. generalize (fold_right (fun t s => (f t + s)%Z) 0%Z (seq mid (hi - mid))).
  intro z. induction (seq lo (mid - lo)) as [|t l IH]; cbn; lia.
Qed.

Lemma sum_range_ext f g lo hi : (forall t, lo <= t < hi -> f t = g t) -> sum_range f lo hi = sum_range g lo hi.
Proof.
  intro H. unfold sum_range. assert (E : forall t, In t (seq lo (hi - lo)) -> f t = g t).
  { intros t Ht. apply in_seq in Ht. apply H. lia. }
  induction (seq lo (hi - lo)) as [|t l IH]; cbn; [reflexivity|].
  rewrite (E t) by now left. f_equal. apply IH. intros; apply E; now right.
Qed.

(** Cut a range anywhere: a cut outside it leaves one part empty. *)
Lemma sum_range_clamp f lo cut hi : sum_range f lo hi
  = (sum_range f lo (Nat.min hi cut) + sum_range f (Nat.max lo cut) hi)%Z.
Proof.
  destruct (Nat.le_gt_cases cut lo) as [H|H]; [|destruct (Nat.le_gt_cases hi cut) as [H'|H']].
  - rewrite (sum_range_empty f lo (Nat.min hi cut)) by lia. now replace (Nat.max lo cut) with lo by lia.
  - rewrite (sum_range_empty f (Nat.max lo cut) hi) by lia. replace (Nat.min hi cut) with hi by lia. lia.
  - replace (Nat.min hi cut) with cut by lia. replace (Nat.max lo cut) with cut by lia. apply sum_range_split. lia.
Qed.

(** ** The tree *)

Section Tree.

(** Steps of the run; the variance clock in ticks; and how a node whose halves both have variance is split, as a
    function of low, middle, high and of what the node holds. *)
Variable steps : nat.
Variable clock : nat -> Z.
Variable split : nat -> nat -> nat -> Z -> Z.

(** [Settlement._elapsed]. *)
Definition elapsed (step : nat) : Z := clock (Nat.min step steps).

(** [Settlement._left], line by line. *)
Definition left_half (low middle high : nat) (total : Z) : Z :=
  if (elapsed high - elapsed middle =? 0)%Z then total
  else if (elapsed middle - elapsed low =? 0)%Z then 0%Z
  else split low middle high total.

Lemma clock_stands_still low middle high total : steps <= middle <= high -> left_half low middle high total = total.
Proof. intro H. unfold left_half, elapsed. now rewrite !Nat.min_r, Z.sub_diag by lia. Qed.

(** [Settlement._share], line by line, with [level] for log2 (high - low). At level 0 one of the two tests holds
    ([share_leaf] below), so the recursion ends there in Python too. *)
Fixpoint share (level low : nat) (total : Z) (since until : nat) : Z :=
  let high := low + 2 ^ level in
  if (since <=? low) && (Nat.min high steps <=? until) then total
  else if (high <=? since) || (until <=? low) then 0%Z
  else match level with
       | O => 0%Z
       | S below =>
           let middle := (low + high) / 2 in
           let first := left_half low middle high total in
           (share below low first since until + share below middle (total - first)%Z since until)%Z
       end.

(** The same walk, noting the nodes it adds up: (level, low, what it holds). *)
Fixpoint nodes (level low : nat) (total : Z) (since until : nat) : list (nat * nat * Z) :=
  let high := low + 2 ^ level in
  if (since <=? low) && (Nat.min high steps <=? until) then [(level, low, total)]
  else if (high <=? since) || (until <=? low) then []
  else match level with
       | O => []
       | S below =>
           let middle := (low + high) / 2 in
           let first := left_half low middle high total in
           nodes below low first since until ++ nodes below middle (total - first)%Z since until
       end.

(** The same walk, counting the splits it makes: each costs at most one normal draw per coordinate. *)
Fixpoint splits (level low since until : nat) : nat :=
  let high := low + 2 ^ level in
  if (since <=? low) && (Nat.min high steps <=? until) then 0
  else if (high <=? since) || (until <=? low) then 0
  else match level with
       | O => 0
       | S below => S (splits below low since until + splits below ((low + high) / 2) since until)
       end.

(** What one step holds: walk down to it. *)
Fixpoint step_noise (level low : nat) (total : Z) (step : nat) : Z :=
  match level with
  | O => total
  | S below =>
      let middle := low + 2 ^ below in
      let first := left_half low middle (low + 2 ^ level) total in
      if step <? middle then step_noise below low first step else step_noise below middle (total - first)%Z step
  end.

Lemma middle_is below low : (low + (low + 2 ^ S below)) / 2 = low + 2 ^ below.
Proof.
  rewrite Nat.pow_succ_r'. replace (low + (low + 2 * 2 ^ below)) with ((low + 2 ^ below) * 2) by lia.
  now apply Nat.div_mul.
Qed.

Lemma pow2_pos n : 1 <= 2 ^ n.
Proof. induction n; cbn; lia. Qed.

(** A leaf is either inside the span or outside it: the third branch of [share] is not reached at level 0. *)
Lemma share_leaf low since until :
  (since <=? low) && (Nat.min (low + 2 ^ 0) steps <=? until) || ((low + 2 ^ 0 <=? since) || (until <=? low)) = true.
Proof.
  cbn [Nat.pow]. destruct (Nat.leb_spec since low), (Nat.leb_spec (Nat.min (low + 1) steps) until),
    (Nat.leb_spec (low + 1) since), (Nat.leb_spec until low); cbn; try reflexivity; lia.
Qed.

(** A node that starts behind the last step holds nothing, and then neither do its halves. *)
Definition supported (low : nat) (total : Z) := steps <= low -> total = 0%Z.

Lemma left_supported low middle high total :
  low <= middle <= high -> supported low total -> supported low (left_half low middle high total).
Proof. intros Hm H Hs. rewrite clock_stands_still by lia. now apply H. Qed.

Lemma right_supported low middle high total : middle <= high ->
  supported middle (total - left_half low middle high total)%Z.
Proof. intros Hm Hs. rewrite clock_stands_still by lia. lia. Qed.

(** A node holds exactly what its steps hold. *)
Lemma node_is_sum : forall level low total, supported low total ->
  total = sum_range (step_noise level low total) low (Nat.min (low + 2 ^ level) steps).
Proof.
  induction level as [|below IH]; intros low total H.
  - destruct (Nat.le_gt_cases steps low) as [Hs|Hs].
    + rewrite sum_range_empty by lia. now apply H.
    + cbn [Nat.pow]. replace (Nat.min (low + 1) steps) with (S low) by lia. now rewrite sum_range_one.
  - set (middle := low + 2 ^ below). set (high := low + 2 ^ S below). set (first := left_half low middle high total).
    assert (P := pow2_pos below).
    assert (Hh : high = middle + 2 ^ below) by (unfold high, middle; rewrite Nat.pow_succ_r'; lia).
    assert (Hl : low <= middle) by (unfold middle; lia).
    assert (Sl : supported low first) by (apply left_supported; [lia|assumption]).
    assert (Sr : supported middle (total - first)) by (apply right_supported; lia).
    assert (El : sum_range (step_noise (S below) low total) low (Nat.min middle steps) = first).
    { transitivity (sum_range (step_noise below low first) low (Nat.min middle steps)); [|symmetry; apply IH, Sl].
      apply sum_range_ext. intros t Ht. cbn [step_noise]. fold middle high first.
      destruct (Nat.ltb_spec t middle); [reflexivity|lia]. }
    destruct (Nat.le_gt_cases steps middle) as [Hs|Hs].
    + replace (Nat.min high steps) with (Nat.min middle steps) by lia. rewrite El. unfold first.
      now rewrite clock_stands_still by lia.
    + rewrite (sum_range_split _ low middle) by lia. replace (Nat.min middle steps) with middle in El by lia.
      rewrite El.
      assert (Er : sum_range (step_noise (S below) low total) middle (Nat.min high steps) = (total - first)%Z).
      { transitivity (sum_range (step_noise below middle (total - first)) middle (Nat.min (middle + 2 ^ below) steps));
          [|symmetry; apply IH, Sr].
        rewrite <- Hh. apply sum_range_ext. intros t Ht. cbn [step_noise].
        fold middle high first. destruct (Nat.ltb_spec t middle); [lia|reflexivity]. }
      rewrite Er. lia.
Qed.

(** A walk over any node returns the noise of those of its steps that lie in the span. *)
Lemma share_is_sum : forall level low total since until, supported low total -> until <= steps ->
  share level low total since until
  = sum_range (step_noise level low total) (Nat.max since low) (Nat.min until (low + 2 ^ level)).
Proof.
  induction level as [|below IH]; intros low total since until H Hu; cbn [share].
  - assert (L := share_leaf low since until).
    destruct (Nat.leb_spec since low), (Nat.leb_spec (Nat.min (low + 2 ^ 0) steps) until); cbn [andb orb] in *;
      try (rewrite L; rewrite sum_range_empty; [reflexivity|];
           apply orb_true_iff in L; destruct L as [L|L]; apply Nat.leb_le in L; lia).
    rewrite (node_is_sum 0 low total H) at 1. cbn [Nat.pow] in *. f_equal; lia.
  - rewrite middle_is. set (middle := low + 2 ^ below). set (high := low + 2 ^ S below).
    set (first := left_half low middle high total).
    assert (P := pow2_pos below).
    assert (Hh : high = middle + 2 ^ below) by (unfold high, middle; rewrite Nat.pow_succ_r'; lia).
    assert (Hl : low <= middle) by (unfold middle; lia).
    assert (Sl : supported low first) by (apply left_supported; [lia|assumption]).
    assert (Sr : supported middle (total - first)) by (apply right_supported; lia).
    destruct (Nat.leb_spec since low), (Nat.leb_spec (Nat.min high steps) until); cbn [andb];
      try (rewrite (node_is_sum (S below) low total H) at 1; fold high; f_equal; lia).
    all: destruct (Nat.leb_spec high since), (Nat.leb_spec until low); cbn [orb];
      try (symmetry; apply sum_range_empty; lia).
    all: rewrite (IH low first), (IH middle (total - first)%Z) by assumption; fold middle; rewrite <- Hh.
    all: rewrite (sum_range_clamp _ (Nat.max since low) middle (Nat.min until high)).
    all: replace (Nat.min (Nat.min until high) middle) with (Nat.min until middle) by lia.
    all: replace (Nat.max (Nat.max since low) middle) with (Nat.max since middle) by lia.
    all: f_equal; apply sum_range_ext; intros t Ht; cbn [step_noise]; fold middle high first;
      destruct (Nat.ltb_spec t middle); try reflexivity; lia.
Qed.

(** The nodes listed are the nodes added. *)
Lemma share_is_nodes : forall level low total since until,
  share level low total since until
    = fold_right (fun '(_, _, held) sum => (held + sum)%Z) 0%Z (nodes level low total since until).
Proof.
  assert (App : forall l m, fold_right (fun '(_, _, held) sum => (held + sum)%Z) 0%Z (l ++ m)
    = (fold_right (fun '(_, _, held) sum => (held + sum)%Z) 0%Z (l : list (nat * nat * Z))
       + fold_right (fun '(_, _, held) sum => (held + sum)%Z) 0%Z (m : list (nat * nat * Z)))%Z).
  { induction l as [|[[? ?] ?] l IH]; intro m; [reflexivity|]. cbn. rewrite IH. lia. }
  induction level as [|below IH]; intros low total since until; cbn [share nodes];
    destruct (_ && _); [cbn; lia|destruct (_ || _); reflexivity|cbn; lia|destruct (_ || _); [reflexivity|]].
  now rewrite App, !IH.
Qed.

(** ** How many nodes, how many splits *)

Ltac walk :=
  repeat match goal with
  | |- context [if (?a <=? ?b) && (?c <=? ?d) then _ else _] =>
      destruct (Nat.leb_spec a b), (Nat.leb_spec c d); cbn [andb]
  | |- context [if (?a <=? ?b) || (?c <=? ?d) then _ else _] =>
      destruct (Nat.leb_spec a b), (Nat.leb_spec c d); cbn [orb]
  end.

(** Outside the span a walk ends at once. *)
Lemma nodes_outside level low total since until :
  low + 2 ^ level <= since \/ until <= low /\ until < Nat.min (low + 2 ^ level) steps ->
  nodes level low total since until = [] /\ splits level low since until = 0.
Proof. intro H. assert (P := pow2_pos level). destruct level; cbn [nodes splits]; walk; auto; lia. Qed.

(** Inside it too. *)
Lemma nodes_inside level low total since until : since <= low -> Nat.min (low + 2 ^ level) steps <= until ->
  nodes level low total since until = [(level, low, total)] /\ splits level low since until = 0.
Proof. intros H H'. destruct level; cbn [nodes splits]; walk; auto; lia. Qed.

(** Unfolding one level where the span neither covers nor misses the node. *)
Lemma walk_down below low total since until :
  let middle := low + 2 ^ below in let first := left_half low middle (low + 2 ^ S below) total in
  length (nodes (S below) low total since until)
    <= Nat.max 1 (length (nodes below low first since until) + length (nodes below middle (total - first) since until))
  /\ splits (S below) low since until <= S (splits below low since until + splits below middle since until).
Proof.
  intros middle first. unfold first, middle. cbn [nodes splits]. rewrite middle_is.
  destruct (_ && _); [cbn [length]; split; [apply Nat.le_max_l|lia]|].
  destruct (_ || _); [cbn [length]; split; lia|]. rewrite app_length. split; [apply Nat.le_max_r|reflexivity].
Qed.

(** A walk that meets one end of the span only goes down one way. *)
Lemma one_end : forall level low total since until, since <= low \/ Nat.min (low + 2 ^ level) steps <= until ->
  length (nodes level low total since until) <= Nat.max 1 level /\ splits level low since until <= level.
Proof.
  induction level as [|below IH]; intros low total since until H.
  - cbn [nodes splits]. walk; cbn; lia.
  - destruct (walk_down below low total since until) as [Wn Ws]. set (middle := low + 2 ^ below) in *.
    set (first := left_half low middle (low + 2 ^ S below) total) in *.
    assert (P := pow2_pos below).
    assert (Hh : low + 2 ^ S below = middle + 2 ^ below) by (unfold middle; rewrite Nat.pow_succ_r'; lia).
    destruct (Nat.le_gt_cases since low) as [Hs|Hs], (Nat.le_gt_cases (Nat.min (low + 2 ^ S below) steps) until)
      as [Hu|Hu].
    + destruct (nodes_inside (S below) low total since until Hs Hu) as [-> ->]. cbn; lia.
    + (* the span reaches over the left end of the node *)
      destruct (Nat.le_gt_cases until middle) as [Hm|Hm].
      * destruct (nodes_outside below middle (total - first) since until) as [En Es]; [right; lia|].
        rewrite En, Es in *.
        destruct (IH low first since until) as [In Is]; [now left|]. cbn [length] in *. lia.
      * destruct (nodes_inside below low first since until Hs) as [En Es]; [fold middle; lia|]. rewrite En, Es in *.
        destruct (IH middle (total - first)%Z since until) as [In Is]; [left; unfold middle; lia|]. cbn [length] in *.
        destruct below; [cbn [Nat.pow] in *; lia|lia].
    + (* over its right end *)
      destruct (Nat.le_gt_cases middle since) as [Hm|Hm].
      * destruct (nodes_outside below low first since until) as [En Es]; [left; exact Hm|]. rewrite En, Es in *.
        destruct (IH middle (total - first)%Z since until) as [In Is]; [right; lia|]. cbn [length] in *. lia.
      * destruct (nodes_inside below middle (total - first) since until) as [En Es]; [lia|lia|]. rewrite En, Es in *.
        destruct (IH low first since until) as [In Is]; [right; fold middle; lia|]. cbn [length] in *.
        destruct below; [cbn [Nat.pow] in *; lia|lia].
    + lia.
Qed.

(** Two ends: at most two nodes a level, none at the root, and one split less than twice the levels. *)
Lemma two_ends : forall level low total since until,
  length (nodes level low total since until) <= Nat.max 1 (2 * (level - 1))
    /\ splits level low since until <= 2 * level - 1.
Proof.
  induction level as [|below IH]; intros low total since until.
  - cbn [nodes splits]. walk; cbn; lia.
  - destruct (Nat.le_gt_cases since low) as [Hs|Hs];
      [destruct (one_end (S below) low total since until); [now left|lia]|].
    destruct (Nat.le_gt_cases (Nat.min (low + 2 ^ S below) steps) until) as [Hu|Hu];
      [destruct (one_end (S below) low total since until); [now right|lia]|].
    destruct (walk_down below low total since until) as [Wn Ws]. set (middle := low + 2 ^ below) in *.
    set (first := left_half low middle (low + 2 ^ S below) total) in *.
    assert (P := pow2_pos below).
    assert (Hh : low + 2 ^ S below = middle + 2 ^ below) by (unfold middle; rewrite Nat.pow_succ_r'; lia).
    destruct (Nat.le_gt_cases middle since) as [Hm|Hm]; [|destruct (Nat.le_gt_cases until middle) as [Hm'|Hm']].
    + destruct (nodes_outside below low first since until) as [En Es]; [left; exact Hm|]. rewrite En, Es in *.
      destruct (IH middle (total - first)%Z since until). cbn [length] in *. lia.
    + destruct (nodes_outside below middle (total - first) since until) as [En Es]; [right; lia|]. rewrite En, Es in *.
      destruct (IH low first since until). cbn [length] in *. lia.
    + destruct (one_end below low first since until) as [Ln Ls]; [right; fold middle; lia|].
      destruct (one_end below middle (total - first)%Z since until) as [Rn Rs]; [left; lia|].
      destruct below; [unfold middle in *; cbn [Nat.pow] in *; lia|lia].
Qed.

(** A single step is one walk down. *)
Lemma one_step_splits : forall level low step, splits level low step (S step) <= level.
Proof.
  induction level as [|below IH]; intros low step; [cbn [splits]; walk; lia|].
  destruct (walk_down below low 0 step (S step)) as [_ Ws]. set (middle := low + 2 ^ below) in *.
  assert (P := pow2_pos below).
  assert (Hh : low + 2 ^ S below = middle + 2 ^ below) by (unfold middle; rewrite Nat.pow_succ_r'; lia).
  destruct (Nat.le_gt_cases (Nat.min (low + 2 ^ S below) steps) (S step)) as [Hu|Hu];
    [apply (one_end (S below) low 0 step (S step)); now right|].
  destruct (Nat.le_gt_cases middle step) as [Hm|Hm].
  - destruct (nodes_outside below low 0 step (S step)) as [_ Es]; [left; exact Hm|]. specialize (IH middle step). lia.
  - destruct (nodes_outside below middle 0 step (S step)) as [_ Es]; [right; lia|]. specialize (IH low step). lia.
Qed.

(** ** Spans of the whole run *)

(** Python's [n.bit_length()]. *)
Definition bit_length (n : nat) : nat := match n with O => 0 | S _ => S (Nat.log2 n) end.

(** log2 of [horizon = 1 << (steps - 1).bit_length()]. *)
Definition levels : nat := bit_length (steps - 1).

(** steps <= horizon < 2 * steps. *)
Lemma horizon_holds_steps : 1 <= steps -> steps <= 2 ^ levels < 2 * steps.
Proof.
  intro H. unfold levels, bit_length. destruct (steps - 1) as [|n] eqn:E; [cbn; lia|].
  destruct (Nat.log2_spec (S n)) as [A B]; [lia|]. rewrite Nat.pow_succ_r' in *. lia.
Qed.

Lemma levels_is_log2_up : levels = Nat.log2_up steps.
Proof.
  unfold levels, bit_length, Nat.log2_up. destruct steps as [|[|n]]; try reflexivity.
Qed.

Variable total : Z.

(** [Settlement.owed_units] of one coordinate whose whole run holds [total]. *)
Definition owed (since until : nat) : Z := share levels 0 total since until.

Lemma owed_is_sum since until : 1 <= steps -> until <= steps ->
  owed since until = sum_range (step_noise levels 0 total) since until.
Proof.
  intros H1 H. assert (Hh := horizon_holds_steps H1). unfold owed. rewrite share_is_sum; [|intro; lia|assumption].
  cbn [plus]. f_equal; lia.
Qed.

(** owed(a, b) = sum over t in [a, b) of owed(t, t + 1).
    A span holds exactly what its steps hold, each asked for by itself. *)
Theorem span_is_sum_of_steps since until : 1 <= steps -> until <= steps ->
  owed since until = sum_range (fun t => owed t (S t)) since until.
Proof.
  intros H1 H. rewrite owed_is_sum by assumption. apply sum_range_ext. intros t Ht.
  rewrite owed_is_sum by lia. now rewrite sum_range_one.
Qed.

(** owed(a, b) + owed(b, c) = owed(a, c) for a <= b <= c <= steps.
    However a row's debt is cut into settlements, it pays the same integer: claim T1. *)
Theorem spans_add a b c : 1 <= steps -> a <= b <= c -> c <= steps -> (owed a b + owed b c = owed a c)%Z.
Proof. intros H1 H Hc. rewrite !owed_is_sum by lia. symmetry. now apply sum_range_split. Qed.

(** owed(a, b) = P(b) - P(a) with P(t) = owed(0, t): the path of docs/arithmetic.md, which FloatBounds.v follows. *)
Theorem span_is_path_difference a b : 1 <= steps -> a <= b -> b <= steps -> owed a b = (owed 0 b - owed 0 a)%Z.
Proof. intros H1 H Hb. assert (E := spans_add 0 a b H1 ltac:(lia) Hb). lia. Qed.

(** owed(0, steps) = total, and owed(a, a) = 0. *)
Theorem whole_run : owed 0 steps = total.
Proof.
  unfold owed. destruct (nodes_inside levels 0 total 0 steps) as [N _]; [lia|lia|]. rewrite share_is_nodes, N. cbn. lia.
Qed.

Theorem empty_span a : 1 <= steps -> a <= steps -> owed a a = 0%Z.
Proof. intros. rewrite owed_is_sum by assumption. now apply sum_range_empty. Qed.

(** owed(a, b) = sum of at most max(1, 2 (K - 1)) nodes of one tree, K = ceil(log2 steps).
    Any span is the sum of few nodes, whose number grows like the logarithm of the run's length. *)
Theorem span_is_sum_of_few_nodes since until :
  owed since until = fold_right (fun '(_, _, held) sum => (held + sum)%Z) 0%Z (nodes levels 0 total since until)
  /\ length (nodes levels 0 total since until) <= Nat.max 1 (2 * (Nat.log2_up steps - 1)).
Proof. split; [apply share_is_nodes|]. rewrite <- levels_is_log2_up. apply two_ends. Qed.

(** One draw for the root and at most one for each split: at most max(1, 2K) draws for a span, K + 1 for a single step,
    1 for the whole run. These are the counts that docs/modes.md gives for one settlement of one coordinate. *)
Definition draws (since until : nat) : nat := S (splits levels 0 since until).

Theorem draws_of_a_span since until : draws since until <= Nat.max 1 (2 * Nat.log2_up steps).
Proof. unfold draws. assert (H := proj2 (two_ends levels 0 0%Z since until)). rewrite levels_is_log2_up in *. lia. Qed.

Theorem draws_of_a_step step : draws step (S step) <= S (Nat.log2_up steps).
Proof. unfold draws. rewrite <- levels_is_log2_up. apply le_n_S, one_step_splits. Qed.

Theorem draws_of_the_run : draws 0 steps = 1.
Proof. unfold draws. destruct (nodes_inside levels 0 total 0 steps) as [_ S0]; [lia|lia|]. now rewrite S0. Qed.

(** A step without variance (a learning rate of zero) holds nothing, if a run without variance does.
    [quiet] is the invariant of a node; Python's root is rint(0 * z) = 0 when the clock never moves. *)
Definition quiet (low high : nat) (held : Z) := elapsed high = elapsed low -> held = 0%Z.

Lemma quiet_step_noise : forall level low held step, quiet low (low + 2 ^ level) held ->
  low <= step < low + 2 ^ level ->
  elapsed (S step) = elapsed step -> step_noise level low held step = 0%Z.
Proof.
  induction level as [|below IH]; intros low held step Q Hst E.
  - cbn [Nat.pow step_noise] in *. replace step with low in E by lia. apply Q. now rewrite Nat.add_1_r.
  - cbn [step_noise]. set (middle := low + 2 ^ below). set (high := low + 2 ^ S below) in *.
    assert (Hh : high = middle + 2 ^ below) by (unfold high, middle; rewrite Nat.pow_succ_r'; lia).
    destruct (Nat.ltb_spec step middle); apply IH; auto; try (unfold middle in *; lia).
    + intro El. fold middle in El. unfold left_half.
      destruct (Z.eqb_spec (elapsed high - elapsed middle) 0); [apply Q; lia|].
      destruct (Z.eqb_spec (elapsed middle - elapsed low) 0); [reflexivity|lia].
    + rewrite <- Hh. intro Er. unfold left_half.
      destruct (Z.eqb_spec (elapsed high - elapsed middle) 0); lia.
Qed.

(** V(t + 1) = V(t) implies owed(t, t + 1) = 0.
    A step whose learning rate is zero owes nothing. *)
Theorem still_clock_owes_nothing step : (clock steps = clock 0 -> total = 0%Z) -> step < steps ->
  clock (S step) = clock step ->
  owed step (S step) = 0%Z.
Proof.
  intros Q H E. assert (Hh := horizon_holds_steps ltac:(lia)). rewrite owed_is_sum, sum_range_one by lia.
  apply quiet_step_noise; [|cbn [plus]; lia|unfold elapsed; rewrite !Nat.min_l by lia; exact E].
  unfold quiet, elapsed. rewrite Nat.min_r, Nat.min_l by (cbn [plus]; lia). exact Q.
Qed.

End Tree.
