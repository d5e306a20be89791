(* GENERATED -- do not edit (placeholder) *)
Require Import List Arith. Import ListNotations.
From samelaw Require Import Monads.

Section Gen.
Context {M : Set -> Type} {CM : CommMonad M} {Val Grad Side : Set}.

Definition settle_rows (table : Table Val) (history : History) (until : nat) (rows : list nat)
    (owed : list nat -> list nat -> nat -> list Val -> M (list Val)) : M (Table Val * History) :=
  let due := (distinct rows) in
  bind (owed due (gather history due) until (gather table due)) (fun value_ =>
  let table := scatter table due value_ in
  let history := fill history due until in
  ret (table, history)).

Definition eager_step (table : Table Val) (step : nat) (program : Program Val (list nat * list Grad * Side)) (rows : list nat)
    (update : nat -> list nat -> list Grad -> list Val -> list Val)
    (owed : list nat -> list nat -> nat -> list Val -> M (list Val)) : M (Table Val * Side) :=
  bind (serve (fun '(tt) asked =>
    ret (tt, (gather table asked))) program tt) (fun '(_, (touched, gradient, side)) =>
  let table := scatter table touched (update step touched gradient (gather table touched)) in
  bind (owed rows (each rows step) (step + 1) (gather table rows)) (fun value_ =>
  let table := scatter table rows value_ in
  ret (table, side))).

Definition lazy_step (table : Table Val) (history : History) (step : nat) (program : Program Val (list nat * list Grad * Side)) (ahead : list nat)
    (update : nat -> list nat -> list Grad -> list Val -> list Val)
    (owed : list nat -> list nat -> nat -> list Val -> M (list Val)) : M (Table Val * History * Side) :=
  bind (serve (fun '(table, history) asked =>
    bind (settle_rows table history step asked owed) (fun '(table, history) =>
    ret ((table, history), (gather table asked)))) program (table, history)) (fun '((table, history), (touched, gradient, side)) =>
  bind (settle_rows table history step touched owed) (fun '(table, history) =>
  let table := scatter table touched (update step touched gradient (gather table touched)) in
  bind (settle_rows table history (step + 1) ahead owed) (fun '(table, history) =>
  ret (table, history, side)))).

Definition release (table : Table Val) (history : History) (step : nat) (rows : list nat)
    (owed : list nat -> list nat -> nat -> list Val -> M (list Val)) : M (Table Val * History) :=
  bind (settle_rows table history step rows owed) (fun '(table, history) =>
  ret (table, history)).

Definition eager_run (table : Table Val) (side : Side) (start : nat) (stop : nat) (rows : list nat)
    (plan : nat -> Side -> M (Program Val (list nat * list Grad * Side)))
    (update : nat -> list nat -> list Grad -> list Val -> list Val)
    (owed : list nat -> list nat -> nat -> list Val -> M (list Val)) : M (Table Val * Side) :=
  bind (foldM (fun '(table, side) step =>
    bind (plan step side) (fun program =>
    bind (eager_step table step program rows update owed) (fun '(table, side) =>
    ret (table, side)))) (seq start (stop - start)) (table, side)) (fun '(table, side) =>
  ret (table, side)).

Definition lazy_run (table : Table Val) (history : History) (side : Side) (start : nat) (stop : nat)
    (plan : nat -> Side -> M (Program Val (list nat * list Grad * Side))) (look_ahead : nat -> Side -> list nat)
    (update : nat -> list nat -> list Grad -> list Val -> list Val)
    (owed : list nat -> list nat -> nat -> list Val -> M (list Val)) : M (Table Val * History * Side) :=
  bind (foldM (fun '(table, history, side) step =>
    bind (plan step side) (fun program =>
    let ahead := (look_ahead step side) in
    bind (lazy_step table history step program ahead update owed) (fun '(table, history, side) =>
    ret (table, history, side)))) (seq start (stop - start)) (table, history, side)) (fun '(table, history, side) =>
  ret (table, history, side)).
End Gen.
