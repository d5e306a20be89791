(** Release and resume: after a release no row owes noise, and a run may stop after any step and go on. *)
Require Import List Arith Lia Setoid Morphisms.
Import ListNotations.
From samelaw Require Import Monads Gen_schedule Schedule FiniteLaws.

Section Release.
Context {M : Set -> Type} {CM : CommMonad M} {Val Grad Side : Set}.
Variable owed : list nat -> list nat -> nat -> list Val -> M (list Val).

Ltac bc := apply bind_cong; [reflexivity|intro].

Lemma settle_rows_history {B : Set} L H t rows (F G : Table Val * History -> M B) :
  (forall L' H', (forall r, In r rows -> H' r = t) -> (forall r, ~ In r rows -> H' r = H r) -> F (L', H') == G (L', H')) ->
  bind (settle_rows L H t rows owed) F == bind (settle_rows L H t rows owed) G.
Proof.
  intro E. unfold settle_rows. cbn zeta. rewrite !bind_assoc. bc. rewrite !bind_ret. apply E.
  - intros r Hr. apply fill_in. now apply nodup_In.
  - intros r Hr. apply fill_out. intro H'. apply Hr. now apply nodup_In in H'.
Qed.

(** Theorem RELEASE. Whatever state a run is in, and however noise is drawn: nothing that happens after a release can tell
    its history from one in which every row has paid for every step. No hypothesis on [owed] is needed. *)
Theorem release_leaves_no_debt {B : Set} L H t rows (F G : Table Val * History -> M B) :
  (forall L' H', (forall r, In r rows -> H' r = t) -> F (L', H') == G (L', H')) ->
  bind (release L H t rows owed) F == bind (release L H t rows owed) G.
Proof.
  intro E. unfold release. rewrite !bind_assoc. apply settle_rows_history. intros L' H' Hin _. rewrite !bind_ret. now apply E.
Qed.

Variable plan : nat -> Side -> M (Program Val (list nat * Grad * Side)).
Variable look_ahead : nat -> Side -> list nat.
Variable update : nat -> list nat -> Grad -> list Val -> list Val.

Lemma lazy_run_fold L H side start stop :
  lazy_run L H side start stop plan look_ahead update owed ==
  foldM (lazy_loop owed plan look_ahead update) (seq start (stop - start)) (L, H, side).
Proof. unfold lazy_run. etransitivity; [|apply ret_bind]. bc. destruct a as [[? ?] ?]. reflexivity. Qed.

(** Theorem RESUME. A run that stops after any step, keeping its table, its history and its surroundings, and goes on from
    them, is the uninterrupted run. *)
Theorem resumed_run_is_uninterrupted L H side first pause last : first <= pause <= last ->
  lazy_run L H side first last plan look_ahead update owed ==
  bind (lazy_run L H side first pause plan look_ahead update owed)
       (fun '(L', H', side') => lazy_run L' H' side' pause last plan look_ahead update owed).
Proof.
  intro Hp. rewrite !lazy_run_fold. replace (last - first) with ((pause - first) + (last - pause)) by lia.
  rewrite seq_app, foldM_app. replace (first + (pause - first)) with pause by lia.
  apply bind_cong; [reflexivity|]. intros [[L' H'] s]. now rewrite lazy_run_fold.
Qed.
End Release.

(** In plain execution: the history itself. *)
Corollary released_history {Val : Set} owed (L : Table Val) H t rows r : In r rows ->
  snd (release (CM := Identity) L H t rows owed) r = t.
Proof. intro Hr. cbn. apply fill_in. now apply nodup_In. Qed.
