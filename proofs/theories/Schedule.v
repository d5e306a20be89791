(** The lazy schedule is the eager one.

    Setting: any commutative monad [M]; any values, gradients and surroundings ([Side]: dense parameters, what was read
    so far, sampler and model state); a noise kernel [owe r a b] that pays row [r] for the steps a, ..., b - 1 with
        owe r t t = nothing                     owe r a t ; owe r t (t + 1)  =  owe r a (t + 1).
    A step draws a model that may read rows as often as it likes, choosing what to read by what it has read, and that
    ends with rows to update, their gradients, and new surroundings. The programs are the definitions generated from
    reference/lazy_schedule.py. *)
Require Import List Arith Lia Setoid Morphisms FunctionalExtensionality.
Import ListNotations.
From samelaw Require Import Monads Gen_schedule.

Infix "==" := meq (at level 70).
Notation "x <- m ;; k" := (bind m (fun x => k)) (at level 61, m at next level, right associativity).

(** * Functions on tables *)

Lemma upd_same {A : Set} (f : nat -> A) k v : upd f k v k = v.
Proof. unfold upd. now rewrite Nat.eqb_refl. Qed.

Lemma upd_other {A : Set} (f : nat -> A) k v x : x <> k -> upd f k v x = f x.
Proof. unfold upd. intro. now destruct (Nat.eqb_spec x k). Qed.

Ltac updt :=
  extensionality x; unfold upd;
  repeat (match goal with |- context [Nat.eqb ?a ?b] => destruct (Nat.eqb_spec a b) end); congruence.

Lemma upd_upd {A : Set} (f : nat -> A) k u v : upd (upd f k u) k v = upd f k v.
Proof. updt. Qed.

Lemma upd_id {A : Set} (f : nat -> A) k : upd f k (f k) = f.
Proof. updt. Qed.

Lemma upd_comm {A : Set} (f : nat -> A) j k u v : j <> k -> upd (upd f j u) k v = upd (upd f k v) j u.
Proof. intro. updt. Qed.

Lemma fill_keep {A : Set} (t : A) : forall b H r, H r = t -> fill H b t r = t.
Proof.
  unfold fill. induction b as [|a b IH]; cbn; intros H r Hr; auto. apply IH.
  destruct (Nat.eq_dec r a) as [->|]; now rewrite ?upd_same, ?upd_other.
Qed.

Lemma fill_in {A : Set} (t : A) : forall b H r, In r b -> fill H b t r = t.
Proof.
  induction b as [|a b IH]; cbn; intros H r Hr; [easy|].
  destruct Hr as [->|Hr]; [apply fill_keep, upd_same|exact (IH _ _ Hr)].
Qed.

Lemma fill_out {A : Set} (t : A) : forall b H r, ~ In r b -> fill H b t r = H r.
Proof.
  induction b as [|a b IH]; cbn; intros H r Hr; auto. change (fill (upd H a t) b t r = H r).
  rewrite IH by tauto. apply upd_other. intros ->. tauto.
Qed.

Lemma fill_le t : forall b H, (forall r, H r <= t) -> forall r, fill H b t r <= t.
Proof.
  induction b as [|a b IH]; cbn; intros H HH r; auto. apply IH. intro x. unfold upd. destruct (Nat.eqb x a); auto.
Qed.

Section Main.
Context {M : Set -> Type} {CM : CommMonad M} {Val Grad Side : Set}.

Ltac bc := apply bind_cong; [reflexivity|intro].

Lemma ret_bind' {A B : Set} (a : A) (f : A -> M B) m : f a == m -> bind (ret a) f == m.
Proof. intro H. rewrite bind_ret. exact H. Qed.

Lemma foldM_app {S X : Set} (f : S -> X -> M S) : forall k l s, foldM f (k ++ l) s == bind (foldM f k s) (foldM f l).
Proof.
  induction k as [|x k IH]; intros l s; cbn; [now rewrite bind_ret|]. rewrite bind_assoc. bc. apply IH.
Qed.

(** The kernel of one row, and the bulk operation that the program calls: row by row, and nothing else. *)
Variable owe : nat -> nat -> nat -> Val -> M Val.
Hypothesis owe_nothing : forall r t w, owe r t t w == ret w.
Hypothesis owe_adds : forall r a t w, a <= t -> bind (owe r a t w) (owe r t (S t)) == owe r a (S t) w.

Variable owed : list nat -> list nat -> nat -> list Val -> M (list Val).
Hypothesis owed_by_row : forall rs since until (table : Table Val), NoDup rs ->
  owed rs (map since rs) until (map table rs) == mapM (fun r => owe r (since r) until (table r)) rs.

(** * One pass over rows *)

Definition pass (f : nat -> Val -> M Val) (rs : list nat) (L : Table Val) : M (Table Val) :=
  foldM (fun L r => v <- f r (L r) ;; ret (upd L r v)) rs L.

Lemma pass_cons f r rs L : pass f (r :: rs) L == (v <- f r (L r) ;; pass f rs (upd L r v)).
Proof. unfold pass at 1. cbn. rewrite bind_assoc. bc. apply bind_ret. Qed.

Lemma pass_ext f g rs L : (forall r w, In r rs -> f r w == g r w) -> pass f rs L == pass g rs L.
Proof.
  revert L; induction rs as [|r rs IH]; intros L H; [reflexivity|]. rewrite !pass_cons.
  apply bind_cong; [apply H; now left|intro]. apply IH. intros; apply H; now right.
Qed.

Lemma mapM_ext {X Y : Set} (f g : X -> M Y) l : (forall x, In x l -> f x == g x) -> mapM f l == mapM g l.
Proof.
  induction l as [|x l IH]; intro H; cbn; [reflexivity|]. apply bind_cong; [apply H; now left|intro].
  rewrite IH by (intros; apply H; now right). reflexivity.
Qed.

(** Gather, work on every row, scatter: the same as one row after another. *)
Lemma scatter_pass f : forall rs L, NoDup rs ->
  (vs <- mapM (fun r => f r (L r)) rs ;; ret (scatter L rs vs)) == pass f rs L.
Proof.
  induction rs as [|r rs IH]; intros L Hnd; [cbn; rewrite bind_ret; reflexivity|].
  inversion_clear Hnd as [|? ? Hr Hnd']. rewrite pass_cons. cbn [mapM]. rewrite bind_assoc. bc. rewrite bind_assoc, <- IH by assumption.
  rewrite (mapM_ext (fun r' => f r' (upd L r a r')) (fun r' => f r' (L r')) rs)
    by (intros x Hx; rewrite upd_other by (intros ->; auto); reflexivity).
  bc. rewrite bind_ret. reflexivity.
Qed.

Lemma pass_frame f a v : forall rs L, ~ In a rs -> pass f rs (upd L a v) == (L' <- pass f rs L ;; ret (upd L' a v)).
Proof.
  induction rs as [|r rs IH]; intros L H.
  - cbn. rewrite bind_ret. reflexivity.
  - rewrite !pass_cons, bind_assoc, upd_other by (intros ->; apply H; now left).
    bc. rewrite <- IH by (intro; apply H; now right). rewrite upd_comm by (intros ->; apply H; now left). reflexivity.
Qed.

(** What row [r] still owes at step [t]. *)
Definition debt (H : History) t := fun r (w : Val) => owe r (H r) t w.

(** Paying one row first changes nothing in the law of the settled table. *)
Lemma pass_pull H t a : forall rs L, In a rs -> NoDup rs ->
  pass (debt H t) rs L == (v <- owe a (H a) t (L a) ;; pass (debt (upd H a t) t) rs (upd L a v)).
Proof.
  induction rs as [|r rs IH]; intros L Hin Hnd; [easy|]. inversion_clear Hnd as [|? ? Hr Hnd'].
  rewrite pass_cons. unfold debt at 1. destruct (Nat.eq_dec r a) as [->|Hne].
  - bc. rewrite pass_cons. unfold debt at 2. rewrite !upd_same, owe_nothing. symmetry. apply ret_bind'.
    rewrite upd_upd. apply pass_ext. intros r w Hrr. unfold debt. rewrite upd_other by (intros ->; auto). reflexivity.
  - destruct Hin as [->|Hin]; [easy|].
    transitivity (x <- owe r (H r) t (L r) ;; v <- owe a (H a) t (L a) ;;
                  pass (debt (upd H a t) t) rs (upd (upd L r x) a v)).
    { bc. rewrite (IH _ Hin Hnd'), (upd_other L r) by auto. reflexivity. }
    rewrite bind_comm. bc. rewrite pass_cons. unfold debt at 2. rewrite !(upd_other _ a) by auto.
    bc. rewrite upd_comm by auto. reflexivity.
Qed.

(** A row that owes nothing is not touched by the others' payments. *)
Lemma pass_settled H t a v : H a = t -> forall rs L,
  pass (debt H t) rs (upd L a v) == (W <- pass (debt H t) rs L ;; ret (upd W a v)).
Proof.
  intro Ha. induction rs as [|r rs IH]; intro L.
  - cbn. rewrite bind_ret. reflexivity.
  - rewrite !pass_cons, bind_assoc. unfold debt at 1 3. destruct (Nat.eq_dec r a) as [->|Hne].
    + rewrite Ha, !owe_nothing, !bind_ret, upd_same, upd_upd, upd_id. apply IH.
    + rewrite upd_other by auto. bc. rewrite <- IH, upd_comm by auto. reflexivity.
Qed.

Lemma pass_read1 {B : Set} H t a rs L (k : Val -> Table Val -> M B) : H a = t ->
  (W <- pass (debt H t) rs L ;; k (W a) W) == (W <- pass (debt H t) rs L ;; k (L a) W).
Proof.
  intro Ha. assert (E := pass_settled H t a (L a) Ha rs L). rewrite upd_id in E.
  rewrite E, !bind_assoc. bc. rewrite !bind_ret, upd_same. reflexivity.
Qed.

(** Settled rows read the same before and after the others pay. *)
Lemma pass_reads {B : Set} H t b rs L : (forall r, In r b -> H r = t) -> forall k : list Val -> Table Val -> M B,
  (W <- pass (debt H t) rs L ;; k (gather W b) W) == (W <- pass (debt H t) rs L ;; k (gather L b) W).
Proof.
  unfold gather. induction b as [|a b IH]; intros Hb k; [reflexivity|]. cbn.
  rewrite (pass_read1 H t a rs L (fun x W => k (x :: map (fun r => W r) b) W)) by (apply Hb; now left).
  apply (IH (fun r Hr => Hb r (or_intror Hr)) (fun l W => k (L a :: l) W)).
Qed.

(** Writing settled rows commutes with the payments of the others. *)
Lemma pass_scatter {B : Set} H t rs (k : Table Val -> M B) : forall b vs L, (forall r, In r b -> H r = t) ->
  (W <- pass (debt H t) rs L ;; k (scatter W b vs)) == (W <- pass (debt H t) rs (scatter L b vs) ;; k W).
Proof.
  unfold scatter. induction b as [|a b IH]; intros vs L Hb; [reflexivity|]. destruct vs as [|v vs]; [reflexivity|].
  cbn. rewrite <- IH by (intros; apply Hb; now right).
  rewrite (pass_settled H t a v (Hb a (or_introl eq_refl))), bind_assoc. bc. rewrite bind_ret. reflexivity.
Qed.

(** Pay through [t], then one more step for everyone = pay through [t + 1]. *)
Lemma pass_merge H t : forall rs L, NoDup rs -> (forall r, H r <= t) ->
  bind (pass (debt H t) rs L) (pass (fun r => owe r t (S t)) rs) == pass (debt H (S t)) rs L.
Proof.
  induction rs as [|a rs IH]; intros L Hnd HH. { apply bind_ret. }
  inversion_clear Hnd as [|? ? Ha Hnd']. rewrite !pass_cons, bind_assoc.
  transitivity (x <- owe a (H a) t (L a) ;; y <- owe a t (S t) x ;; W <- pass (debt H t) rs L ;;
                pass (fun r => owe r t (S t)) rs (upd W a y)).
  { bc. rewrite bind_comm, (pass_frame _ a _ rs L Ha), bind_assoc. bc.
    rewrite bind_ret, pass_cons, upd_same. bc. rewrite upd_upd. reflexivity. }
  unfold debt at 1. rewrite <- bind_assoc. fold (debt H t). unfold debt at 2. rewrite owe_adds by auto.
  bc. rewrite <- IH by auto. rewrite (pass_frame _ a _ rs L Ha), bind_assoc. bc. rewrite bind_ret. reflexivity.
Qed.

(** A row already paid through [t] may be paid once more: nothing happens. *)
Lemma pass_catch t rs : NoDup rs -> forall b L H, incl b rs -> NoDup b ->
  pass (debt H t) rs L == (L' <- pass (debt H t) b L ;; pass (debt (fill H b t) t) rs L').
Proof.
  intros Hnd b. induction b as [|a b IH]; intros L H Hin Hb; cbn [fill fold_left]. { symmetry. apply bind_ret. }
  apply incl_cons_inv in Hin as [Ha Hb']. inversion_clear Hb as [|? ? Hab Hbn].
  rewrite (pass_pull H t a rs L Ha Hnd), pass_cons, bind_assoc. bc. rewrite IH by assumption.
  unfold fill. cbn [fold_left]. apply bind_cong; [|reflexivity].
  apply pass_ext. intros r w Hr. unfold debt. rewrite upd_other by (intros ->; auto). reflexivity.
Qed.

(** * The generated settlement *)

Lemma settle_rows_pass table history t rows :
  settle_rows table history t rows owed ==
  (L <- pass (debt history t) (distinct rows) table ;; ret (L, fill history (distinct rows) t)).
Proof.
  unfold settle_rows. cbn zeta. unfold gather. rewrite owed_by_row by apply NoDup_nodup.
  rewrite <- scatter_pass by apply NoDup_nodup. rewrite bind_assoc. unfold debt. bc. rewrite bind_ret. reflexivity.
Qed.

Lemma distinct_incl rows all : incl rows all -> incl (distinct rows) all.
Proof. intros H r Hr. apply H. now apply nodup_In in Hr. Qed.

(** Before anything is read, settling some rows first changes nothing for what comes after everyone has paid. *)
Lemma settle_then {B : Set} t all rs L H (k : Table Val -> M B) : NoDup all -> incl rs all ->
  (W <- pass (debt H t) all L ;; k W) ==
  bind (settle_rows L H t rs owed) (fun '(L', H') => W <- pass (debt H' t) all L' ;; k W).
Proof.
  intros Hnd Hin. rewrite settle_rows_pass, bind_assoc.
  rewrite (pass_catch t all Hnd (distinct rs) L H (distinct_incl _ _ Hin) (NoDup_nodup _ _)), bind_assoc.
  bc. rewrite bind_ret. reflexivity.
Qed.

(** * The theorem *)

Variable rows : list nat.
Hypothesis rows_once : NoDup rows.

(** The model reads and updates rows of the table only (a padding row is none of them). *)
Inductive within {A : Set} : Program Val (list nat * Grad * A) -> Prop :=
  | within_done touched gradient side : incl touched rows -> within (Done (touched, gradient, side))
  | within_read asked next : incl asked rows -> (forall vs, within (next vs)) -> within (Read asked next).

Variable plan : nat -> Side -> M (Program Val (list nat * Grad * Side)).
Variable look_ahead : nat -> Side -> list nat.
Variable update : nat -> list nat -> Grad -> list Val -> list Val.

(** Almost surely: the plan is drawn among models that stay within the table. *)
Hypothesis plan_within : forall t side,
  exists q : M {p | within p}, plan t side == (p <- q ;; ret (proj1_sig p)).
Hypothesis look_ahead_within : forall t side, incl (look_ahead t side) rows.

(** One step: everyone pays and then eager steps, or lazy steps and then everyone pays. *)
Lemma step_same {B : Set} t L H program ahead (k : Table Val -> Side -> M B) :
  within program -> incl ahead rows -> (forall r, H r <= t) ->
  (W <- pass (debt H t) rows L ;; bind (eager_step W t program rows update owed) (fun '(W', s) => k W' s)) ==
  bind (lazy_step L H t program ahead update owed)
       (fun '(L', H', s) => W <- pass (debt H' (S t)) rows L' ;; k W s).
Proof.
  intros Hp Ha. revert L H. unfold eager_step, lazy_step. induction Hp as [touched gradient side Hin|asked next Hin _ IH];
    intros L H HH.
  - cbn [serve]. rewrite !bind_ret.
    transitivity (W <- pass (debt H t) rows L ;;
      (fun W => W' <- pass (fun r => owe r t (S t)) rows
                      (scatter W touched (update t touched gradient (gather W touched))) ;; k W' side) W).
    { bc. rewrite bind_ret. cbn zeta. unfold each, gather. rewrite Nat.add_1_r, !bind_assoc.
      rewrite owed_by_row by assumption.
      rewrite <- scatter_pass, bind_assoc by assumption. bc. rewrite !bind_ret. reflexivity. }
    rewrite (settle_then t rows touched L H _ rows_once Hin).
    rewrite settle_rows_pass, !bind_assoc. bc. rewrite !bind_ret.
    set (H1 := fill H (distinct touched) t). cbn beta iota zeta.
    assert (S1 : forall r, In r touched -> H1 r = t) by (intros; apply fill_in; now apply nodup_In).
    rewrite (pass_reads H1 t touched rows a S1
      (fun vs W => W' <- pass (fun r => owe r t (S t)) rows (scatter W touched (update t touched gradient vs)) ;;
                   k W' side)).
    rewrite (pass_scatter H1 t rows (fun W => W' <- pass (fun r => owe r t (S t)) rows W ;; k W' side)) by exact S1.
    rewrite <- bind_assoc, pass_merge; [|assumption|now apply fill_le].
    rewrite Nat.add_1_r, !bind_assoc.
    rewrite (settle_then (S t) rows ahead _ H1 _ rows_once Ha). apply bind_cong; [reflexivity|]. intros [L2 H2].
    rewrite bind_ret. reflexivity.
  - cbn [serve]. rewrite !bind_assoc.
    transitivity (W <- pass (debt H t) rows L ;;
      (fun vs W => bind (eager_step W t (next vs) rows update owed) (fun '(W', s) => k W' s)) (gather W asked) W).
    { bc. unfold eager_step. rewrite bind_ret. reflexivity. }
    rewrite (settle_then t rows asked L H _ rows_once Hin).
    rewrite settle_rows_pass, !bind_assoc. bc. rewrite !bind_ret. set (H1 := fill H (distinct asked) t).
    assert (S1 : forall r, In r asked -> H1 r = t) by (intros; apply fill_in; now apply nodup_In).
    rewrite (pass_reads H1 t asked rows a S1
      (fun vs W => bind (eager_step W t (next vs) rows update owed) (fun '(W', s) => k W' s))).
    unfold eager_step. rewrite (IH (gather a asked) a H1) by now apply fill_le.
    rewrite !bind_assoc. reflexivity.
Qed.

Definition eager_loop := fun '(table, side) step =>
  bind (plan step side) (fun program =>
  bind (eager_step table step program rows update owed) (fun '(table, side) => ret (table, side))).

Definition lazy_loop := fun '(table, history, side) step =>
  bind (plan step side) (fun program =>
  bind (lazy_step table history step program (look_ahead step side) update owed)
       (fun '(table, history, side) => ret (table, history, side))).

(** Histories never run ahead of the next step. *)
Lemma settle_bounded {B : Set} t L H rs (F G : Table Val * History -> M B) : (forall r, H r <= t) ->
  (forall L H, (forall r, H r <= t) -> F (L, H) == G (L, H)) ->
  bind (settle_rows L H t rs owed) F == bind (settle_rows L H t rs owed) G.
Proof.
  intros HH E. rewrite settle_rows_pass, !bind_assoc. bc. rewrite !bind_ret. apply E. now apply fill_le.
Qed.

Lemma lazy_step_bounded {B : Set} t program ahead (F G : Table Val * History * Side -> M B) : forall L H,
  (forall r, H r <= t) ->
  (forall L H s, (forall r, H r <= S t) -> F (L, H, s) == G (L, H, s)) ->
  bind (lazy_step L H t program ahead update owed) F == bind (lazy_step L H t program ahead update owed) G.
Proof.
  unfold lazy_step. induction program as [[[touched gradient] side]|asked next IH]; intros L H HH E.
  - cbn [serve]. rewrite !bind_ret, !bind_assoc. apply settle_bounded with (1 := HH). clear L H HH. intros L H HH.
    cbn zeta. rewrite Nat.add_1_r, !bind_assoc.
    apply settle_bounded; [intro r; apply Nat.le_trans with (1 := HH r); auto|].
    intros L' H' HH'. rewrite !bind_ret. now apply E.
  - cbn [serve]. rewrite !bind_assoc. apply settle_bounded with (1 := HH). clear L H HH. intros L H HH.
    rewrite !bind_ret. specialize (IH (gather L asked) L H HH E). rewrite !bind_assoc in IH. exact IH.
Qed.

Lemma loop_same : forall n t L H side, (forall r, H r <= t) ->
  (W <- pass (debt H t) rows L ;; foldM eager_loop (seq t n) (W, side)) ==
  bind (foldM lazy_loop (seq t n) (L, H, side))
       (fun '(L', H', side') => W <- pass (debt H' (t + n)) rows L' ;; ret (W, side')).
Proof.
  induction n as [|n IH]; intros t L H side HH; cbn [seq foldM].
  - rewrite bind_ret, Nat.add_0_r. reflexivity.
  - destruct (plan_within t side) as [q Eq].
    transitivity (p <- q ;; W <- pass (debt H t) rows L ;;
      bind (eager_step W t (proj1_sig p) rows update owed) (fun '(W1, s) => foldM eager_loop (seq (S t) n) (W1, s))).
    { rewrite (bind_comm _ _ _ q). bc. unfold eager_loop at 1. rewrite Eq, !bind_assoc. bc.
      rewrite bind_ret, bind_assoc. apply bind_cong; [reflexivity|]. intros [W1 s]. now rewrite bind_ret. }
    unfold lazy_loop at 1. rewrite Eq, !bind_assoc. bc. rewrite bind_ret, !bind_assoc.
    rewrite (step_same t L H (proj1_sig a) (look_ahead t side)
              (fun W1 s => foldM eager_loop (seq (S t) n) (W1, s)) (proj2_sig a) (look_ahead_within t side) HH).
    apply lazy_step_bounded; [exact HH|]. intros L' H' s HH'. rewrite bind_ret, (IH (S t) L' H' s HH').
    now rewrite Nat.add_succ_r.
Qed.

Lemma eager_run_loop W side start stop :
  eager_run W side start stop rows plan update owed == foldM eager_loop (seq start (stop - start)) (W, side).
Proof.
  unfold eager_run. etransitivity; [|apply ret_bind]. bc. destruct a. reflexivity.
Qed.

Lemma lazy_run_loop L H side start stop :
  lazy_run L H side start stop plan look_ahead update owed ==
  foldM lazy_loop (seq start (stop - start)) (L, H, side).
Proof.
  unfold lazy_run. etransitivity; [|apply ret_bind]. bc. destruct a as [[? ?] ?]. reflexivity.
Qed.

Lemma release_pass L H t :
  release L H t rows owed == (W <- pass (debt H t) rows L ;; ret (W, fill H rows t)).
Proof.
  unfold release. etransitivity; [etransitivity; [|apply ret_bind]; bc; destruct a; reflexivity|].
  rewrite settle_rows_pass. unfold distinct. now rewrite nodup_fixed_point by exact rows_once.
Qed.

(** Lazy, then release, from any state in which rows owe noise = everyone pays, then eager. *)
Theorem lazy_is_eager_from start stop L H side : (forall r, H r <= start) -> start <= stop ->
  bind (release L H start rows owed)
       (fun '(W, _) => eager_run W side start stop rows plan update owed) ==
  bind (lazy_run L H side start stop plan look_ahead update owed)
       (fun '(L', H', side') => bind (release L' H' stop rows owed) (fun '(W, _) => ret (W, side'))).
Proof.
  intros HH Hle. rewrite release_pass, bind_assoc, lazy_run_loop.
  transitivity (W <- pass (debt H start) rows L ;; foldM eager_loop (seq start (stop - start)) (W, side)).
  { bc. rewrite bind_ret. apply eager_run_loop. }
  rewrite loop_same by exact HH. replace (start + (stop - start)) with stop by lia.
  apply bind_cong; [reflexivity|]. intros [[L' H'] s]. rewrite release_pass, bind_assoc. bc. now rewrite bind_ret.
Qed.

(** Theorem SCHEDULE. From one initial table, and with nothing owed at the start: the eager run and the lazy run with
    its release have the same joint law of the released table and of the surroundings, hence of everything that was
    ever read, because the surroundings may record it. *)
Theorem lazy_is_eager steps W side :
  eager_run W side 0 steps rows plan update owed ==
  bind (lazy_run W (fun _ => 0) side 0 steps plan look_ahead update owed)
       (fun '(L, H, side') => bind (release L H steps rows owed) (fun '(W', _) => ret (W', side'))).
Proof.
  rewrite <- lazy_is_eager_from by lia. rewrite release_pass, bind_assoc.
  transitivity (bind (ret W) (fun W => eager_run W side 0 steps rows plan update owed)); [now rewrite bind_ret|].
  apply bind_cong; [|intro; rewrite bind_ret; reflexivity].
  clear - owe_nothing. symmetry. induction rows as [|r rs IH]; [reflexivity|].
  rewrite pass_cons. unfold debt at 1. rewrite owe_nothing, bind_ret, upd_id. exact IH.
Qed.
End Main.
